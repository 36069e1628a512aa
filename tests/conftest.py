"""How Hypothesis works here: without clocks, because a busy machine must not fail a test, and the same on every run.

`make test` tries the same examples each time, so that its verdict depends on the code alone. To look for new failures, run
`pytest --hypothesis-profile=explore`; it prints the blob that reproduces what it finds, which then becomes an `@example`.

Every HTTP client reads the certificates of all authorities, 18 ms of a core, also where no TLS follows. Hundreds of tests make
one, so the certificates are read once.
"""

from functools import cache

import httpx._transports.default as http_transports
from hypothesis import HealthCheck, settings

settings.register_profile("explore", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.register_profile("steady", settings.get_profile("explore"), derandomize=True, database=None)
settings.load_profile("steady")

http_transports.create_ssl_context = cache(http_transports.create_ssl_context)
