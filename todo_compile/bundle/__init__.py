"""What is on the disk: files written whole, locks, manifests, bundles, and what `inspect` shows."""
