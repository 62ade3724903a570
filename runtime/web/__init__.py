"""Static web page that runs both graphs of a bundle in the browser, with ONNX Runtime Web."""

from save_deploy.runtime.web.site import Site, write_site

__all__ = ["Site", "write_site"]
