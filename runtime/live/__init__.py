"""Live sources through a bundle: camera and microphone, streams, pipes."""
