"""Stands before the real click on the import path: Ctrl-C arrives while it is imported."""

import os
import signal
import time

os.kill(os.getpid(), signal.SIGINT)
time.sleep(10)
