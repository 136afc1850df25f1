"""A Ray cluster, MLflow and PostgreSQL, started for real (make test-cluster): see docs/reference/cluster-tests.md."""
