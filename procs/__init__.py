"""One package per process of a node.

Whoever runs one of them is about to make a hundred thousand objects that stay: modules, classes, descriptors. At its
default the collector goes through all of them again and again meanwhile, a tenth of a process's start, and later for
every few hundred live objects of a large store. Only for processes under supervisord: a program that merely imports
one of these packages keeps its own collector.
"""

import gc
import os

if "SUPERVISOR_ENABLED" in os.environ:
    gc.set_threshold(10_000, 20, 20)
