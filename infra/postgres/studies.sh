#!/bin/bash
# Runs once, in a new volume: a database for the search's studies, whose user has no part in MLflow's.
set -euo pipefail
psql -v ON_ERROR_STOP=1 -v password="$STUDIES_PASSWORD" -U "$POSTGRES_USER" -d "$POSTGRES_DB" <<'SQL'
CREATE ROLE studies LOGIN PASSWORD :'password';
CREATE DATABASE studies OWNER studies;
SQL
