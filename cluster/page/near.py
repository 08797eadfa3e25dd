"""The models most like one, by the method that is chosen, or all methods side by side."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from fastapi.responses import Response

from cluster.model_methods import METHODS
from cluster.page.render import show
from cluster.problems import Refused
from cluster.served_models import compared_methods, nearest_by
from cluster.services import Services

MOST = 20
ALL = "all"
CHOICES = {
    "signature": "signatures, no weights read", "exact": "all weights, place by place",
    "features": "planes as pictures", "temporal": "signatures, smoothed over time",
    "hybrid": "signatures and pictures", ALL: "every method, compared",
}  # fmt: skip
"""What the form offers: the methods, and all of them beside the truth."""
ABOUT = {
    "signature": "By signatures: about 0 for an unrelated model, 1 for the same weights in whatever order of neurons.",
    "exact": "The cosine of all weights, tensors of one name and shape, every byte read; blind to moved neurons.",
    "features": "The mean of five features of a few planes of the base level, seen as pictures.",
    "temporal": "The signature's score, averaged with those of the models archived just before and just after.",
    "hybrid": "How likely it is a relative, by signature and pictures together, weighted as learnt on known families.",
}


async def view(services: Services, request: Request) -> Response:
    """Of the model `m`, among those that the caller may read; `method` is one of those that the form offers."""
    chosen, models = services.model(request, request.path_params["m"]), services.readable_models(request)
    method, most = request.query_params.get("method", "signature"), services.limits.read_bytes
    if method not in CHOICES:
        raise Refused(422, f"there is no method {method[:40]!r}", remedy=f"choose one of {', '.join(METHODS)}")
    told: dict[str, Any] = {"model": chosen.name, "method": method, "choices": CHOICES, "others": len(models) - 1}
    with services.admitted():
        if method == ALL:
            found = await services.at_work(lambda: compared_methods(chosen, models, most))
            return show("compared.html", found=found, best=found.best(MOST), **told)
        nearest = await services.at_work(lambda: nearest_by(method, chosen, models, MOST, most))
    kinds = sorted({kind for one in nearest for kind in one.by_kind})
    return show("near.html", found=nearest, kinds=kinds, about=ABOUT[method], **told)
