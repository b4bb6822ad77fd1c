# SPDX-License-Identifier: Apache-2.0
"""Modules of the standard library, as much of them as a cold start needs; only in an archive, under the real names.

A program's modules say `import os` as everybody does, and mean it: run as a script, and in tests, they have the real
one. In a cold start they have the one of here until Python's start is completed, and it hands on what it lacks.
"""
