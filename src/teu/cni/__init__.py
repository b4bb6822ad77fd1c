# SPDX-License-Identifier: Apache-2.0
"""The Container Network Interface, from the runtime's side: configurations, plugins, and what is attached. A ground
floor for teu-containerd's CRI and for teu-ctr. Specification: CNI 1.1, and what libcni does where that is silent."""
