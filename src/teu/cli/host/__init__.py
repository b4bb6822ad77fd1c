# SPDX-License-Identifier: Apache-2.0
"""`teu system check`: what of this host stands in the way of containers. The host is read and never changed.

report     the command: all checks, how they are shown, the exit status
finding    what a check tells, and how files of the host are read
kernel     version, namespaces, options and modules
control    systemd, the control groups
security   AppArmor, seccomp, the firewall
"""
