"""What a compiled model and a measured step look like: as data, and as one HTML page that works offline."""
