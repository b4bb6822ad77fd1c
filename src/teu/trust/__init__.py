# SPDX-License-Identifier: Apache-2.0
"""Whether an image of a registry may be used: signatures and attestations, and the policy that asks for them.

`policy` reads /etc/teu/policy.yaml, `attached` finds what a registry has for a manifest, `cosign` and `notation` say
what one signature proves, `keys` has the cryptography, `verify` puts them together. Who pulls asks `gate`: teud,
teu-containerd and teu-buildkitd; `teu image signatures` shows what there is. On a host without a policy nothing of here
is loaded but `gate` and `files`, which looks for it.
"""
