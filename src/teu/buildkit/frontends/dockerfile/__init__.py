# SPDX-License-Identifier: Apache-2.0
"""The builder's own frontend for Dockerfiles: text and options in, definitions of LLB and image configurations out.

It knows no wire and reads no file: whatever it must know of images, contexts and earlier results it asks its `Client`.

    parser, shell      text to instructions with their lines; words and variables
    instructions,      what each instruction may say
      mounts, ports, gitref, ignore
    lint               the build checks
    client, contexts   what is asked of the builder; where files come from
    stages, steps,     the stages under way, and what each instruction does to its stage
      copies, runs, image
    convert            one platform's result
    subrequests        outline, targets and check in the place of a build
    scanner            the bill of materials
    frontend           the request: build() and compile()
"""
