# SPDX-License-Identifier: Apache-2.0
"""How programs that start cold start quickly: one archive of byte code, and an interpreter of which only the core runs.

src/c/teu-coldstart.c   the program that stands in /usr/sbin and the like: libpython's core, then the archive's code
importer.py             runs there in importlib's place: imports from the archive
boot.py                 runs then: the program; completes Python's start when something needs it
archive.py              writes the archive, when the package is installed

Where the time goes, measured on a machine of 2 cores. Of the 6 ms that `python3 -IS` needs before the first line of
ours, 2.5 are the core (exec, libraries, types), 1 is importlib, and 2.5 go to what a program of milliseconds never
uses. A module from a file is 15 system calls more; `os` alone is 1.5 ms. With it `state` takes 5.2 ms of processor
time (runc 6.5, crun 3.5): exec 0.9, libpython 0.9 for its relocations, its core 1.3, our imports 1.0, the work 0.3,
the exit 0.4. The heap begins in one huge page, which is one fault in the place of 300. benchmarks/RESULTS.md has what
a whole container takes.

`teu ps` took 932 page faults and 16 ms of processor time as a script, and takes 363 and 7 so, on a busy machine where
`python3 -IS -c pass` takes 654 and 10.
"""
