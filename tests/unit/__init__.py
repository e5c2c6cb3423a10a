"""One file a core module; no server, no loop but where the module itself awaits."""
