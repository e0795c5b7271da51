"""Operating system: files that survive a crash, locks, terminals, network servers, hardware."""
