"""Video files in, masks out: an overlay video, PNGs, a JSON record. Imports av when it is used."""
