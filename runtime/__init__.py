"""Running, comparing and timing of bundles. Imports without torch, except `eager`."""
