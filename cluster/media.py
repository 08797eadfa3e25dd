"""Content types of the interface."""

JSON, NDJSON = "application/json", "application/x-ndjson"
ARROW, FLOATS = "application/vnd.apache.arrow.stream", "application/octet-stream"
FORM, JPEG, PNG = "multipart/form-data", "image/jpeg", "image/png"
