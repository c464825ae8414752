#!/bin/bash
# What the compose files rely on: at the first start a database is made, by a server that answers on the socket only.
set -e
export PGUSER=${POSTGRES_USER:-postgres}
if [ "$(id -u)" = 0 ]; then
    install -d -o postgres -m 700 "$PGDATA"
    exec setpriv --reuid=postgres --regid=postgres --init-groups "$0" "$@"
fi
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    initdb --username="$PGUSER" --pwfile=<(printf '%s\n' "$POSTGRES_PASSWORD")
    echo 'host all all all scram-sha-256' >> "$PGDATA/pg_hba.conf"
    echo "listen_addresses = '*'" >> "$PGDATA/postgresql.conf"
    pg_ctl start -w -o "-c listen_addresses=''"
    createdb "$POSTGRES_DB"
    pg_ctl stop -w
fi
exec "$@"
