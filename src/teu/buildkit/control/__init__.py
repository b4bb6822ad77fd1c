# SPDX-License-Identifier: Apache-2.0
"""The builder's front door: what clients call, and how their builds are led.

rpc            services on grpcio's server: errors, clients that leave, what is going on
control        moby.buildkit.v1.Control: builds, progress, sessions, the cache, workers, history
requests       what a client asks for, read and checked
builds, build  the builds under way; one of them: from its request to the exporters' answers
view           what a frontend sees of its build
bridge         moby.buildkit.v1.frontend.LLBBridge: the same for frontends that live in clients and in containers
programs       frontends in containers, and boxes, in which those run
containers     containers that frontends make for their own purposes
history        what builds there were: history.db
cleaning       garbage collection
workers        what the builder says of itself
"""
