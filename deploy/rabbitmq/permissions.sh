#!/bin/sh
# Give a user what the sidecar needs on RabbitMQ, and no more.
#
#   deploy/rabbitmq/permissions.sh USER QUEUE [VHOST]
#   RABBITMQCTL="docker compose exec rabbitmq rabbitmqctl" deploy/rabbitmq/permissions.sh USER QUEUE
#
# configure: the queues that it creates where they are absent; nothing with SIDECAR_AMQP_DECLARE=never and queues of
#   yours, those for delays included.
# write: the default exchange, by which dead letters and delayed messages reach their queues.
# read: the queue, those that messages come back from, and the dead letters for `sidecar dlq`.
#
# With SIDECAR_AMQP_EXCHANGE add the queue to `write` and the exchange to `read` (and to `configure` where it is absent),
# with SIDECAR_DEAD_LETTER_EXCHANGE that to `write`. `sidecar check` names what is missing.
set -eu
user=$1
# In a pattern a dot is any character.
queue=$(printf '%s' "$2" | sed 's/[].[^$*+?(){}|\\]/\\&/g')
vhost=${3:-/}

queues="$queue(\\.dead|\\.delay\\.[0-9]+)?"
${RABBITMQCTL:-rabbitmqctl} set_permissions --vhost "$vhost" "$user" "^$queues\$" '^amq\.default$' "^$queues\$"
