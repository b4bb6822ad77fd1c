# SPDX-License-Identifier: Apache-2.0
"""Ansible with ansible.yaml beside this file, in a folder with what it builds and composes; prints its report."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

with tempfile.TemporaryDirectory() as folder:
    Path(folder, "Dockerfile").write_text("FROM busybox\nARG WHAT\nRUN echo $WHAT >/what\n")
    Path(folder, "compose.yaml").write_text(
        "services:\n  one:\n    image: busybox\n    command: sleep 100\n    init: false\n    stop_grace_period: 0s\n"
        "    volumes: [data:/data]\nvolumes: {data: {}}\n"
    )
    Path(folder, "ansible.cfg").write_text("[defaults]\nhost_key_checking = false\n[connection]\npipelining = true\n")
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": f"{folder}/ansible.cfg",
        "ANSIBLE_LOCAL_TEMP": f"{folder}/local",
        "ANSIBLE_REMOTE_TEMP": f"{folder}/remote",
        "LC_ALL": "C.UTF-8",
    }
    report = Path(folder, "report")
    command = [
        sys.executable,
        "-m",
        "ansible",
        "playbook",
        "-i",
        "localhost,",
        "-e",
        f"folder={folder} report={report}",
    ]
    done = subprocess.run(
        [*command, str(Path(__file__).with_name("ansible.yaml"))],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        check=False,
    )
    if done.returncode:
        sys.exit(done.returncode)
    print(report.read_text())
