"""A bundle as a static page: both graphs in ONNX Runtime Web, in the visitor's browser."""

from save_deploy.runtime.web.site import Site, write_site

__all__ = ["Site", "write_site"]
