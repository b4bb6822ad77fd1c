# SPDX-License-Identifier: Apache-2.0
"""Builds: teud has no builder, it knows where one listens. What clients say to it is carried there unread.

builder   where it is; what is asked of it for df and prune
relay     POST /grpc, HTTP/2 by prior knowledge, POST /session
"""
