"""The walk of a graph of neighbours, compiled: short codes on the way, finer vectors for the few that come near.

A best-first search (Malkov, Yashunin, PAMI 2018, the ground level of their graph) compares a query with the head of
each vector, its leading principal components at 8 bits each (the split of Tepper et al., LeanVec, TMLR 2024), in
integer arithmetic; the nearest found are then compared by the vectors as the index stores them, in float32. Codes are
fetched ahead of their use. The nodes met are kept in one sorted array of integers: score, row, whether it was expanded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

from cluster.vectors import F32

I64 = npt.NDArray[np.int64]

LINE = 64  # bytes of a cache line
AHEAD = 4  # codes fetched before they are compared
NOWHERE = np.int64(0x7FFFFFFFFFFFFFFF)  # sorts behind every node
_LOW = np.int64(0x7FFFFFFF)
TINY = np.float32(1e-30)
ENOUGH = 0.75  # of the width that is asked for
LEAST, MOST = 1.5, 4.0  # how much wider a walk is walked again that met too few


def _prefetched(typing: Any, array: Any, offset: Any) -> Any:
    """Ask for the cache line at `offset` elements from the start of an array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        place = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(8).as_pointer())
        word = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [place.type, word, word, word])
        function = builder.module.declare_intrinsic("llvm.prefetch", [place.type], kind)
        builder.call(function, [place, *(ir.Constant(word, value) for value in (0, 3, 1))])  # read, keep, data
        return context.get_dummy_value()

    return types.void(array, offset), generate


_prefetch: Any = intrinsic(_prefetched)


def _value(stored: Any) -> Any:
    """A stored number as float32; uint16 holds the bits of a float16."""
    raise NotImplementedError


@overload(_value)
def _typed_value(stored: Any) -> Callable[[Any], Any]:
    def plain(stored: Any) -> Any:
        return np.float32(stored)

    def from_half(stored: Any) -> Any:
        """Exponents are rebased by one product, which is exact and works for subnormals."""
        wide = np.uint32(stored)
        bits = ((wide & np.uint32(0x8000)) << np.uint32(16)) | ((wide & np.uint32(0x7FFF)) << np.uint32(13))
        return np.uint32(bits).view(np.float32) * np.float32(2.0**112)

    return from_half if stored == types.uint16 else plain


@njit(cache=True, nogil=True)
def _sortable(score: Any) -> Any:
    """float32 as an integer of the same order."""
    bits = np.float32(score + np.float32(0.0)).view(np.int32)
    return np.int64(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@njit(cache=True, nogil=True)
def _score(key: Any) -> Any:
    bits = np.int32(key >> 32)
    return np.int32(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))).view(np.float32)


@njit(cache=True, nogil=True)
def _dot(query: Any, codes: Any, node: Any) -> Any:
    total = np.int32(0)
    for i in range(query.shape[0]):
        total += np.int32(query[i]) * np.int32(codes[node, i])
    return total


@njit(cache=True, nogil=True, fastmath=True)
def squared_distance(query: Any, low: Any, step: Any, stored: Any, node: Any) -> Any:
    """Of a query (d,) float32 and a stored vector, low + step * number."""
    total = np.float32(0)
    for i in range(query.shape[0]):
        difference = query[i] - (low[i] + step[i] * _value(stored[node, i]))
        total += difference * difference
    return total


@njit(cache=True, nogil=True, fastmath=True)
def _product(query: Any, low: Any, step: Any, stored: Any, node: Any) -> Any:
    total = np.float32(0)
    for i in range(query.shape[0]):
        total += query[i] * (low[i] + step[i] * _value(stored[node, i]))
    return total


@njit(cache=True, nogil=True)
def _weigh(head: Any, middle: Any, step: Any, out: Any) -> Any:
    """A query's head times the codes' steps as 16-bit integers (no sum with codes overflows); their unit."""
    largest = total = np.float32(0)
    for i in range(head.shape[0]):
        weight = abs((head[i] - middle[i]) * step[i])
        largest, total = max(largest, weight), total + weight
    unit = max(largest / np.float32(32767), total * np.float32(255 * 1.01 / (2**31 - 1)), TINY)
    for i in range(head.shape[0]):
        out[i] = np.int16(np.rint((head[i] - middle[i]) * step[i] / unit))
    return unit


@njit(cache=True, nogil=True)
def _fetch(rows: Any, node: Any) -> None:
    width = rows.shape[1]
    for offset in range(0, width, LINE // rows.itemsize):
        _prefetch(rows, np.int64(node) * width + offset)


@njit(cache=True, nogil=True)
def _insert(pool: Any, size: Any, key: Any) -> Any:
    """Put a key in its place among `size` ascending ones, the last giving way when the pool is full; its place."""
    place = min(size, pool.shape[0] - 1)
    while place > 0 and pool[place - 1] > key:
        pool[place] = pool[place - 1]
        place -= 1
    pool[place] = key
    return place


@njit(cache=True, nogil=True)
def _walk(
    query: Any, scale: Any, links: Any, codes: Any, bias: Any, entries: Any, absent: Any, pool: Any, seen: Any
) -> Any:  # fmt: skip
    """Fill `pool` with the nodes nearest to a query; how many, and how many were compared.

    absent: a node that counts as not being there, -1 for none. A key is the sortable score, the node, and a last bit
    that says that it was expanded.
    """
    full, degree = pool.shape[0], links.shape[1]
    fresh = np.empty(degree + 1, np.int32)
    seen[:] = 0
    if absent >= 0:
        seen[absent >> 5] |= np.uint32(1) << np.uint32(absent & 31)
    size = compared = at = 0
    node = np.int64(-1)  # the first round takes the entries for neighbours
    while True:
        count = 0
        around = entries.shape[0] if node < 0 else degree
        for i in range(min(around, degree)):
            near = entries[i] if node < 0 else links[node, i]
            if near < 0:
                break
            word, bit = near >> 5, np.uint32(1) << np.uint32(near & 31)
            fresh[count] = near
            count += (seen[word] & bit) == 0
            seen[word] |= bit
        for i in range(min(count, AHEAD)):
            _fetch(codes, fresh[i])
        lowest = at + 1 if node >= 0 else 0
        bar = pool[full - 1] if size == full else NOWHERE
        for i in range(count):
            if i + AHEAD < count:
                _fetch(codes, fresh[i + AHEAD])
            near = np.int64(fresh[i])
            score = bias[near] - scale * np.float32(_dot(query, codes, near))
            key = (_sortable(score) << 32) | (near << 1)
            if key < bar:
                lowest = min(lowest, _insert(pool, size, key))
                size = min(size + 1, full)
                bar = pool[full - 1] if size == full else NOWHERE
        compared += count
        at = lowest
        while at < size and pool[at] & 1:
            at += 1
        if at == size:
            return size, compared
        node = (pool[at] >> 1) & _LOW
        pool[at] |= 1


@njit(cache=True, nogil=True)
def _may(allowed: Any, row: Any) -> Any:
    """Whether a row's bit is set; an empty bitmap allows all."""
    return allowed.shape[0] == 0 or (allowed[row >> 3] >> (row & 7)) & 1


@njit(cache=True, nogil=True)
def _inside(pool: Any, size: Any, order: Any, allowed: Any) -> Any:
    """How many of the nodes met may be answered."""
    count = 0
    for i in range(size):
        count += _may(allowed, order[(pool[i] >> 1) & _LOW])
    return count


@njit(cache=True, nogil=True)
def _scan(query: Any, scale: Any, codes: Any, bias: Any, order: Any, allowed: Any, keys: Any, pool: Any) -> Any:
    """Fill `pool` from all nodes that may be answered: what a walk that keeps a large share of them would come to,
    faster. keys: (n,) int64, overwritten."""
    count = 0
    for node in range(codes.shape[0]):
        if _may(allowed, order[node]):
            score = bias[node] - scale * np.float32(_dot(query, codes, node))
            keys[count] = (_sortable(score) << 32) | (np.int64(node) << 1)
            count += 1
    size = min(count, pool.shape[0])
    if size:
        pool[:size] = np.sort(np.partition(keys[:count], size - 1)[:size])
    return size, count


@njit(cache=True, nogil=True)
def search(
    queries: Any, heads: Any, middle: Any, head_step: Any, links: Any, codes: Any, bias: Any, entries: Any,
    order: Any, stored: Any, low: Any, step: Any, product: Any, width: Any, first: Any, widest: Any, again: Any,
    allowed: Any, absent: Any, scores: Any, rows: Any,
) -> Any:  # fmt: skip
    """Answer a batch: fills `scores` and `rows` (q, k), best first, rows -1 where fewer were met; nodes compared.

    Parameters
    ----------
    queries: (q, d) float32; heads: their heads (q, h) float32; middle: (h,), taken off them; head_step: (h,), of the
    codes.
    links: (n, degree) int32, -1 behind the last; codes: (n, h) uint8; bias: (n,) float32, the part of a score that
    depends on the node alone. entries: nodes to start from. order: (n,) int32, the row of each node.
    stored, low, step: (n, d) uint8, uint16 or float32 numbers, (d,) and (d,) float32: the finer vectors.
    product: a score is a similarity (negated here) and no squared distance.
    width: nodes kept on the way that may be answered; first and widest: nodes of any kind that a walk keeps at first
    and at most, beyond which every node that may be answered is compared instead; again: those of them compared by the
    finer vectors; allowed: little-endian bitmap of the rows that may be answered, empty for all. absent: (q,) int32, a
    node for each query that a walk passes by as if it were not there; empty for none.

    Under a filter a walk that met too few such nodes is walked again, wider by what share it met: near a query that
    share can be far from the filter's own, where what it asks for goes along with the vectors.
    """
    k, compared = rows.shape[1], 0
    pool, best = np.empty(max(width, widest), np.int64), np.empty(k, np.int64)
    keys = np.empty(0, np.int64)
    seen = np.empty((links.shape[0] + 31) // 32, np.uint32)
    head = np.empty(codes.shape[1], np.int16)
    for q in range(queries.shape[0]):
        scale = _weigh(heads[q], middle, head_step, head) * np.float32(1 if product else 2)
        size, wide = 0, first
        node_absent = absent[q] if absent.shape[0] else np.int32(-1)
        while wide <= widest:
            size, met = _walk(head, scale, links, codes, bias, entries, node_absent, pool[:wide], seen)
            compared += met
            inside = size if allowed.shape[0] == 0 else _inside(pool, size, order, allowed)
            if inside >= ENOUGH * width or size < wide:  # enough, or all that can be reached
                break
            wide = np.int64(wide * min(max(width / max(inside, 1), LEAST), MOST)) + 1
        if wide > widest:
            if keys.shape[0] == 0:
                keys = np.empty(codes.shape[0], np.int64)
            size, met = _scan(head, scale, codes, bias, order, allowed, keys, pool[:width])
            compared += met
        kept = 0
        for i in range(size):  # only rows that may be answered are worth a second look
            node = (pool[i] >> 1) & _LOW
            if _may(allowed, order[node]):
                pool[kept] = node
                kept += 1
                if kept <= again:
                    _fetch(stored, node)
                else:
                    break
        found = 0
        for i in range(min(kept, again)):
            node = pool[i]
            if product:
                score = -_product(queries[q], low, step, stored, node)
            else:
                score = squared_distance(queries[q], low, step, stored, node)
            key = (_sortable(score) << 32) | np.int64(order[node])
            if found < k or key < best[k - 1]:
                _insert(best, found, key)
                found = min(found + 1, k)
        for i in range(k):
            rows[q, i] = best[i] & _LOW if i < found else -1
            scores[q, i] = (-_score(best[i]) if product else _score(best[i])) if i < found else np.nan
    return compared


@njit(cache=True, nogil=True)
def breadth_first(links: Any, start: Any) -> Any:
    """Nodes in the order in which a breadth-first walk from `start` meets them, then the unreachable: (n,) int32."""
    count = links.shape[0]
    order, met = np.empty(count, np.int32), np.zeros(count, np.bool_)
    size = done = following = 0
    order[0], met[start], size = start, True, 1
    while size < count or done < size:
        if done == size:
            while met[following]:
                following += 1
            order[size], met[following] = following, True
            size += 1
        node = order[done]
        done += 1
        for i in range(links.shape[1]):
            near = links[node, i]
            if near < 0:
                break
            if not met[near]:
                order[size], met[near] = near, True
                size += 1
    return order


@njit(cache=True, nogil=True)
def tails(centre: Any, middle: Any, codes: Any, head_low: Any, head_step: Any, stored: Any, low: Any, step: Any) -> Any:
    """The part of each squared distance that depends on the node alone: (n,) float32.

    The squared length of the decoded head, and of what the whole vector has beyond the head, both from the centre
    (`centre` of the vectors (d,), `middle` of the heads (h,)): beyond the head nothing is known of the query, so its
    tail counts as being at the centre.
    """
    bias = np.empty(codes.shape[0], np.float32)
    for node in range(codes.shape[0]):
        head = squared_distance(middle, head_low, head_step, codes, node)
        bias[node] = max(head, squared_distance(centre, low, step, stored, node))
    return bias


@njit(cache=True, nogil=True)
def mean(stored: Any, low: Any, step: Any) -> F32:
    """Of the stored vectors: (d,) float32."""
    total = np.zeros(stored.shape[1], np.float64)
    for node in range(stored.shape[0]):
        for i in range(stored.shape[1]):
            total[i] += _value(stored[node, i])
    middle: F32 = (low + step * (total / max(stored.shape[0], 1))).astype(np.float32)
    return middle
