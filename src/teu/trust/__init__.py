# SPDX-License-Identifier: Apache-2.0
"""Whether an image of a registry may be used: signatures and attestations, and the policy that asks for them.

`policy` reads /etc/teu/policy.yaml, `attached` finds what a registry has for a manifest, `cosign` and `notation` say
what one signature proves, `keys` has the cryptography, `verify` puts them together. Called by who pulls: teud,
teu-containerd and teu-buildkitd; and by `teu image signatures`. On a host without a policy nothing of here is loaded
but `files`, which looks for it.
"""
