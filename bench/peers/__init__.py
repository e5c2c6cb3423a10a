"""The programs that the sidecar is compared with, each in a process of its own."""
