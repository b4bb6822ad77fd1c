# SPDX-License-Identifier: Apache-2.0
"""Where results go (core.exports): an image of the host's engine, a registry, an archive or a folder of the client.

registry       the kinds there are, by their names
attributes     what clients say of them
images         a result as blobs: configurations, manifests, an index, attestations
config         an image's configuration and the history in it
image          the image exporter: names, dangling ones, unpacking;  push  to registries
layout         oci and docker: archives, and layouts in a store of the client
trees          a result as one tree of files, with files that come with it
folder         local and tar
statements     in-toto statements of attestations;  provenance  how a result came about
"""
