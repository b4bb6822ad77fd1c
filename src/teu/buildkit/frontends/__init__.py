# SPDX-License-Identifier: Apache-2.0
"""What makes graphs of LLB of what people write: the frontend of Dockerfiles, and others in containers.

bridge       what a frontend may ask of its build
builtin      Dockerfiles, by the frontend in dockerfile/, which knows nothing of sessions, gRPC and builds
files        Dockerfiles and .dockerignore from contexts
gateway      a frontend that is an image
"""
