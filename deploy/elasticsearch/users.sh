#!/bin/sh
# Make the sidecar's roles and its user in Elasticsearch, and set Kibana's password. Doing it again changes nothing.
#
#   ELASTIC_PASSWORD=… SIDECAR_PASSWORD=… [KIBANA_PASSWORD=…] deploy/elasticsearch/users.sh URL
#
# Passwords have letters and digits only: they are put into JSON as they are. They never stand on a command line, where
# others could read them: curl takes them from its standard input.
set -eu
url=$1
here=$(dirname "$0")

put() {
    printf 'user = "elastic:%s"\n' "$ELASTIC_PASSWORD" |
        curl --fail-with-body -sS -K - -X PUT -H 'content-type: application/json' -d "@$2" "$url$1"
    echo
}

put_text() {
    printf 'user = "elastic:%s"\ndata = "%s"\n' "$ELASTIC_PASSWORD" "$(printf '%s' "$2" | sed 's/"/\\"/g')" |
        curl --fail-with-body -sS -K - -X PUT -H 'content-type: application/json' "$url$1"
    echo
}

put /_security/role/sidecar "$here/role.json"
put /_security/role/sidecar-templates "$here/role-templates.json"
put_text /_security/user/sidecar "{\"password\":\"$SIDECAR_PASSWORD\",\"roles\":[\"sidecar\",\"sidecar-templates\"]}"
if [ -n "${KIBANA_PASSWORD:-}" ]; then
    put_text /_security/user/kibana_system/_password "{\"password\":\"$KIBANA_PASSWORD\"}"
fi
