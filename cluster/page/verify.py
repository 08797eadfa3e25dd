"""Whether a model's archive is as it was written, for browsers that cannot follow the check as it goes."""

from __future__ import annotations

from fastapi import Request
from fastapi.responses import Response

from cluster.integrity import Check, checks
from cluster.models import ModelService
from cluster.page.render import show
from cluster.services import Services


async def view(services: Services, request: Request) -> Response:
    """Of the model `m`; an archive larger than what may be read for one answer is not begun."""
    chosen = services.model(request, request.path_params["m"])
    size, check = chosen.about["archive_bytes"], None
    if size <= services.limits.read_bytes:
        with services.admitted():
            check = await services.at_work(lambda: _whole(chosen))
    return show("verify.html", model=chosen.name, size=size, check=check)


def _whole(chosen: ModelService) -> Check:
    *_, last = checks(chosen.archive)
    return last
