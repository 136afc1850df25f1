#!/usr/bin/env bash
# MLflow with PostgreSQL, proxied artifacts and authentication. Everything comes from the environment:
#
#   MLFLOW_BACKEND_STORE_URI        postgresql+psycopg://USER@HOST:PORT/DATABASE, without the password
#   PGPASSWORD                      the database's password, where it asks for one
#   MLFLOW_ARTIFACTS_DESTINATION    an absolute folder, or a URI such as s3://BUCKET/mlflow
#   MLFLOW_AUTH_ADMIN_PASSWORD      of the user that the first start makes, 12 letters or more
#   MLFLOW_AUTH_ADMIN_USERNAME      admin
#   MLFLOW_FLASK_SERVER_SECRET_KEY  signs the forms of the web page; the same for all servers of one database
#   MLFLOW_HOST, MLFLOW_PORT        127.0.0.1, 5000
#   MLFLOW_SERVER_ALLOWED_HOSTS     host:port, comma between, * for any, by which clients may call it; loopback alone
#   MLFLOW_WORKERS                  2 processes
#
# `mlflow` is the one on PATH: of masm[cluster].
set -euo pipefail
umask 077

refuse() { echo "serve.sh: $*" >&2; exit 2; }

for name in MLFLOW_BACKEND_STORE_URI MLFLOW_ARTIFACTS_DESTINATION MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY; do
  [[ -n "${!name:-}" ]] || refuse "$name is not set: see the head of this file."
done
export MLFLOW_AUTH_ADMIN_USERNAME="${MLFLOW_AUTH_ADMIN_USERNAME:-admin}"
host="${MLFLOW_HOST:-127.0.0.1}" port="${MLFLOW_PORT:-5000}"

((${#MLFLOW_AUTH_ADMIN_PASSWORD} >= 12)) || refuse "MLFLOW_AUTH_ADMIN_PASSWORD has fewer than 12 letters: choose a longer one."
[[ "$MLFLOW_BACKEND_STORE_URI" == postgresql* ]] ||
  refuse "MLFLOW_BACKEND_STORE_URI is no address of PostgreSQL: SQLite stands one process, not workers of a server."
# `ps` shows command lines to every user of the machine, and the commands below take the address on theirs.
[[ ! "$MLFLOW_BACKEND_STORE_URI" =~ ://[^/@]*:[^/@]*@ && "$MLFLOW_BACKEND_STORE_URI" != *password=* ]] ||
  refuse "MLFLOW_BACKEND_STORE_URI holds a password: put it into PGPASSWORD."
if [[ -z "${MLFLOW_SERVER_ALLOWED_HOSTS:-}" ]]; then
  [[ "$host" == 127.* || "$host" == localhost ]] ||
    refuse "MLFLOW_HOST is $host: name the addresses that clients use in MLFLOW_SERVER_ALLOWED_HOSTS."
  MLFLOW_SERVER_ALLOWED_HOSTS="localhost:$port,$host:$port"
fi
export MLFLOW_SERVER_ALLOWED_HOSTS

# MLflow takes the address of its users' table from a file alone.
private="$(mktemp -d)"
cat > "$private/auth.ini" <<INI
[mlflow]
default_permission = READ
database_uri = ${MLFLOW_BACKEND_STORE_URI//%/%%}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
INI
export MLFLOW_AUTH_CONFIG_PATH="$private/auth.ini"
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false  # it would run code that its users send
export MLFLOW_DISABLE_TELEMETRY=true

# Before the workers start: several that make the same tables at once fail.
mlflow db upgrade "$MLFLOW_BACKEND_STORE_URI"
python -m mlflow.server.auth db upgrade --url "$MLFLOW_BACKEND_STORE_URI"

exec mlflow server --app-name basic-auth --host "$host" --port "$port" --workers "${MLFLOW_WORKERS:-2}" \
  --serve-artifacts --artifacts-destination "$MLFLOW_ARTIFACTS_DESTINATION" --expose-prometheus "$private/metrics"
