"""Static web page that runs both graphs of a bundle in the browser, with ONNX Runtime Web."""
