"""Pages for a browser: one HTML file each, with all it needs inside."""
