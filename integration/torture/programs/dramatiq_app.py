"""What the command line of Dramatiq loads in each of its processes."""

from __future__ import annotations

import os

from .dramatiq import make
from .ledger import QUEUE, URL, begin

begin()
broker, handle = make(os.environ[URL], os.environ[QUEUE])
