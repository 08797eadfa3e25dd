"""What goes wrong at the storage edge: which faults are worth another try, and what the rest say to the user."""

from __future__ import annotations

import errno

from operators.errors import HilbertflowError
from storage.replies import WrongReplyError

# Busy, reset, timed out: the server or the network may be well again in a moment. EREMOTEIO is s3fs's HTTP 500.
_TRANSIENT_ERRNOS = frozenset(
    getattr(errno, name)
    for name in ("EAGAIN", "EBUSY", "ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EPIPE", "EREMOTEIO", "ETIMEDOUT")
    if hasattr(errno, name)
)
_TRANSIENT_CODES = frozenset(
    {"SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "RequestTimeoutException", "Throttling",
     "ThrottlingException", "RequestLimitExceeded", "BandwidthLimitExceeded", "ConditionalRequestConflict"}
)  # fmt: skip
# The class names of botocore, aiohttp, httpx and gcsfs for the same faults; none of those libraries is imported here.
_TRANSIENT_NAMES = frozenset(
    {"EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "ConnectionClosedError", "HTTPClientError",
     "ResponseStreamingError", "IncompleteReadError", "IncompleteRead", "ServerDisconnectedError", "ClientPayloadError",
     "ClientConnectorError", "ClientOSError", "ServerTimeoutError", "ConnectError", "ConnectTimeout", "ReadTimeout",
     "ReadError", "RemoteProtocolError", "PoolTimeout", "ResponseParserError"}
)  # fmt: skip
EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"})
_LIBRARIES = frozenset(
    {"aiobotocore", "aiohttp", "adlfs", "azure", "botocore", "fsspec", "gcsfs", "google", "httpcore", "httpcore2",
     "httpx", "httpx2", "huggingface_hub", "paramiko", "requests", "s3fs", "urllib3"}
)  # fmt: skip
EXTRAS = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "abfss": "adlfs", "az": "adlfs",
          "http": "aiohttp", "https": "aiohttp", "hf": "huggingface_hub", "sftp": "paramiko", "ssh": "paramiko",
          "hdfs": "pyarrow", "smb": "smbprotocol", "dropbox": "dropboxdrivefs", "webdav": "webdav4"}  # fmt: skip


class MissingFileError(HilbertflowError):
    """A file, object or directory that is not there."""

    def __reduce__(self) -> tuple[object, ...]:
        return _missing, (self.what, self.where, self.remedy)


class UnreachableError(HilbertflowError):
    """The storage does not answer, or does not let us: what lies there may be sound."""

    def __reduce__(self) -> tuple[object, ...]:
        return _unreachable, (self.what, self.where, self.remedy)


def _unreachable(what: str, where: str, remedy: str) -> UnreachableError:
    return UnreachableError(what, where=where, remedy=remedy)


def _missing(what: str, where: str, remedy: str) -> MissingFileError:
    return MissingFileError(what, where=where, remedy=remedy)


def is_transient(error: BaseException) -> bool:
    """True for timeouts, broken connections, HTTP 5xx but "not implemented", and throttling; else false."""
    if isinstance(error, HilbertflowError | FileNotFoundError | PermissionError):
        return False
    if isinstance(error, TimeoutError | ConnectionError | WrongReplyError):
        return True
    if isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNOS:
        return True
    if type(error).__name__ in _TRANSIENT_NAMES and is_storage_fault(error):
        return True
    status, code = _status(error)
    if status == 429 or (500 <= status < 600 and status != 501) or code in _TRANSIENT_CODES:
        return True
    return error.__cause__ is not None and is_transient(error.__cause__)


def _status(error: BaseException) -> tuple[int, str]:
    """HTTP status and service code, wherever the libraries keep them; 0 and "" when there are none."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore.exceptions.ClientError
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return (status if isinstance(status, int) else 0), str(response.get("Error", {}).get("Code", ""))
    for holder, attribute in ((response, "status_code"), (error, "status"), (error, "code")):
        value = getattr(holder, attribute, None)
        if isinstance(value, int) and not isinstance(value, bool):
            return value, ""
    return 0, ""


def _code(error: BaseException | None) -> str:
    """Code of an S3 service, of an error or of what it was made from."""
    while error is not None:
        if code := _status(error)[1]:
            return code
        error = error.__cause__
    return ""


def is_storage_fault(error: BaseException) -> bool:
    """True when the operating system or a storage library raised it, as against a mistake in a program."""
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _LIBRARIES


def explained(error: BaseException, where: str, doing: str) -> HilbertflowError:
    """Turn a fault into one line that names the place and the remedy.

    Parameters
    ----------
    error: what the operating system or the storage library raised.
    where: URL of the file or object.
    doing: "read", "written", "listed" or "deleted".
    """
    if isinstance(error, HilbertflowError):
        return error
    number = error.errno if isinstance(error, OSError) else None
    text = str(error.strerror if isinstance(error, OSError) and error.strerror else error) or type(error).__name__
    if number in (errno.ENOSPC, errno.EDQUOT):
        what = "no space left on the device" if number == errno.ENOSPC else "the disk quota is used up"
        return HilbertflowError(
            f"{what}, it cannot be {doing}", where=where,
            remedy="free space there or point sink.path at another place; a repeated run resumes",
        )  # fmt: skip
    if isinstance(error, FileNotFoundError):
        return MissingFileError("does not exist", where=where, remedy="check the path, the bucket and the spelling")
    if _code(error) in EXPIRED:
        return UnreachableError(
            f"cannot be {doing}: the credentials have expired", where=where,
            remedy="renew them, then run again: it goes on where it stopped",
        )  # fmt: skip
    if isinstance(error, PermissionError) or number in (errno.EROFS, errno.EPERM):
        what = "is on a read-only file system" if number == errno.EROFS else f"may not be {doing}: permission denied"
        return UnreachableError(what, where=where, remedy="check the file's mode or the credentials in use")
    if isinstance(error, IsADirectoryError):
        return HilbertflowError("is a directory where a file is expected", where=where)
    if isinstance(error, NotADirectoryError | FileExistsError):
        return HilbertflowError(f"cannot be {doing}: a file stands where a directory is needed", where=where)
    if number == errno.EINVAL and "satisfiable" in text:  # HTTP 416: the range begins past the end
        return HilbertflowError("is shorter than expected", where=where, remedy="it is truncated: copy it again")
    if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
        return UnreachableError(
            "no credentials for the object store", where=where,
            remedy="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile",
        )  # fmt: skip
    if isinstance(error, WrongReplyError):
        return UnreachableError(
            f"cannot be {doing}: {text}", where=where,
            remedy="the server or a proxy before it answers ranges wrongly: name another endpoint",
        )  # fmt: skip
    if is_transient(error):
        return UnreachableError(
            f"cannot be {doing}, the storage does not answer ({type(error).__name__}: {text})", where=where,
            remedy="check the network and the endpoint, then run again",
        )  # fmt: skip
    refused = number == errno.EINVAL and _code(error) == "400"  # to HEAD a server cannot say why
    return UnreachableError(
        f"cannot be {doing} ({type(error).__name__}: {text})", where=where,
        remedy="see whether the credentials have expired" if refused else "",
    )  # fmt: skip
