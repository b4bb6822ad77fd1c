# SPDX-License-Identifier: Apache-2.0
"""How programs that start cold start quickly: one archive of byte code, and an interpreter of which only the core runs.

src/c/teu-coldstart.c   the program that stands in /usr/sbin: libpython's core, then the archive's code
importer.py             runs there in importlib's place: imports from the archive
boot.py                 runs then: the program; completes Python's start when something needs it
archive.py              writes the archive, when the package is installed
"""
