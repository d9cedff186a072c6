"""Celery's settings, a reason each. Both sides read this one file."""

from kombu import Exchange, Queue

from models.engine import current
from producer.connect import (
    REDIS_CHECK_SECONDS,
    REDIS_SECONDS,
    redis_options,
    settings,
    tls_options,
)

_settings = settings()

broker_url = _settings.celery_broker_url
result_backend = _settings.celery_result_backend
broker_use_ssl = tls_options()

# Messages are ids; anything but JSON is refused.
task_serializer = result_serializer = "json"
accept_content = result_accept_content = ["json"]

# A message is acknowledged when its batch is over, so that a killed worker's comes back.
task_acks_late = True
task_reject_on_worker_lost = True
task_acks_on_failure = task_acks_on_timeout = True
# A redelivered task that had succeeded must still count for its chord.
worker_deduplicate_successful_tasks = False

# The backlog stays in the queue, where the autoscaler sees it, and not in a busy worker.
worker_prefetch_multiplier = 1
worker_disable_prefetch = True

# After an hour an unacknowledged message comes back. It changes nothing when its batch is done or
# its lease runs: leases, not messages, decide who works on what.
# The prefix of all keys is the ledger's: `producer.broker.transport`, which subscribes without
# patterns.
broker_transport_options = {
    "visibility_timeout": 3600,
    "fanout_patterns": False,
    **redis_options(),
}
redis_socket_timeout = REDIS_SECONDS
redis_socket_connect_timeout = 10
redis_backend_health_check_interval = REDIS_CHECK_SECONDS
# A Redis that is away for 18 s delays a chord's count; the defaults would wait for a silent one for
# seven minutes. What is not counted then, the reconciler does.
result_backend_transport_options = {
    "retry_policy": {"max_retries": 5, "interval_start": 0, "interval_step": 2, "interval_max": 6}
}
broker_connection_retry_on_startup = True
# After a hundred attempts, which are three quarters of an hour, a worker would end.
broker_connection_max_retries = None
# A Redis that is out of memory refuses commands; without this the worker shuts down, and may hang.
broker_channel_error_retry = True
# Results are needed for the chord's count only.
result_expires = 24 * 3600

task_queues = [
    Queue(name, Exchange(name, type="direct"), routing_key=name)
    for name in current.migration().queues
]
task_default_queue = "migration.control"
worker_send_task_events = True
task_send_sent_event = True
# Nobody reads a worker's stdout as a log; ours are structured and carry run, batch and attempt.
worker_hijack_root_logger = False
worker_redirect_stdouts = False
