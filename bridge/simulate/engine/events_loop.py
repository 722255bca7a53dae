"""The loops of `bridge.simulate.engine.events`, compiled by numba: all layers, steps and images in one call.

A feature map ``[H, W, C]`` is kept as events: of each line of pixels the codes ``x · C + c`` of what is not 0, in
order, and for each pixel where its own begin. So a window's events in a line lie side by side, and what an affine layer
makes of them is the sum of as many rows of its weights, ``[kernel rows, kernel columns, C, outputs]``. A zero costs
nothing. Two small loops are written in LLVM's own terms, since sums have to stay in the processor's vector registers.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg, assignment, unreachable"

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from bridge.simulate.engine.machine_code import inner, outer

LANES = 16
"""Channels are padded to a multiple of this."""
TOGETHER = 4
"""Rows that are added to each other before they are added to the sum, so that additions need not wait in line."""

# What each number in a stage's and in a connection's row says; `bridge.simulate.engine.events` fills them in.
STAGE = ("kind", "channels", "height", "width", "steady", "first", "last", "vectors", "codes", "line", "places",
         "potentials", "spiking", "padded")  # fmt: skip
KIND, CHANNELS, HEIGHT, WIDTH, STEADY, FIRST, LAST, VECTORS, CODES, LINE, PLACES, POTENTIALS, SPIKING, PADDED = range(
    len(STAGE)
)
CONNECTION = ("source", "rows", "columns", "down", "right", "above", "before", "row_stride", "column_stride", "groups",
              "weights", "valued", "length")  # fmt: skip
SOURCE, ROWS, COLUMNS, DOWN, RIGHT, ABOVE, BEFORE, ROW_STRIDE, COLUMN_STRIDE, GROUPS, WEIGHTS, VALUED, LENGTH = range(
    len(CONNECTION)
)
VALUES, NEURONS, OUTPUT = range(3)
"""Kinds of stages: what is stored is any value, or spikes, or it is the network's output."""

APART = 16
"""Places between what two threads tell each other: no line of a cache holds both."""

_SELECTED = np.zeros((256, 8), np.int32)
"""For each byte, the numbers of its bits that are 1, and then anything."""
for _byte in range(256):
    _ones = [_bit for _bit in range(8) if _byte >> _bit & 1]
    _SELECTED[_byte, : len(_ones)] = _ones


# Vectors


def _data(context: Any, builder: Any, signature: Any, arguments: Any, number: int) -> Any:
    """Where the array begins that is the argument of that number."""
    return context.make_array(signature.args[number])(context, builder, arguments[number]).data


def _splat(builder: Any, value: Any, lanes: int) -> Any:
    """`value` in all lanes of a vector."""
    vector = ir.VectorType(value.type, lanes)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes))


def _row_adder(lanes: int) -> Any:
    """The function that adds rows of weights, `lanes` columns of them, in vector registers.

    ``add(total, at, weights, base, length, codes, values, valued, start, stop)`` adds, to ``total[at : at + lanes]``,
    ``weights[base + code * length :][:lanes]`` for each code from `start` to `stop`, times its value if `valued`.
    """

    def add(typing: Any, total: Any, at: Any, weights: Any, base: Any, length: Any, codes: Any, values: Any,
            valued: Any, start: Any, stop: Any) -> Any:  # fmt: skip
        whole = types.intp
        return types.void(total, whole, weights, whole, whole, codes, values, types.boolean, whole, whole), generate

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = ir.VectorType(ir.FloatType(), lanes)
        _, at, _, base, length, _, _, valued, start, stop = arguments
        totals, weights, codes, values = (_data(context, builder, signature, arguments, k) for k in (0, 2, 5, 6))

        def as_vector(pointer: Any, index: Any) -> Any:
            return builder.bitcast(builder.gep(pointer, [index]), vector.as_pointer())

        def row(index: Any, times_value: bool) -> Any:
            code = builder.sext(builder.load(builder.gep(codes, [index])), index.type)
            found = builder.load(as_vector(weights, builder.add(base, builder.mul(code, length))), align=4)
            if not times_value:
                return found
            return builder.fmul(found, _splat(builder, builder.load(builder.gep(values, [index])), lanes))

        def add_rows(times_value: bool) -> None:
            one, several = (ir.Constant(start.type, k) for k in (1, TOGETHER))
            rest = builder.sub(stop, builder.and_(builder.sub(stop, start), ir.Constant(start.type, TOGETHER - 1)))
            with cgutils.for_range_slice(builder, start, rest, several, intp=start.type) as (k, _):
                rows = [row(builder.add(k, ir.Constant(start.type, n)), times_value) for n in range(TOGETHER)]
                pairs = builder.fadd(builder.fadd(rows[0], rows[1]), builder.fadd(rows[2], rows[3]))
                builder.store(builder.fadd(builder.load(total), pairs), total)
            with cgutils.for_range_slice(builder, rest, stop, one, intp=start.type) as (k, _):
                builder.store(builder.fadd(builder.load(total), row(k, times_value)), total)

        place = as_vector(totals, at)
        total = cgutils.alloca_once_value(builder, builder.load(place, align=4))
        with builder.if_else(cgutils.as_bool_bit(builder, valued)) as (then, otherwise):
            with then:
                add_rows(True)
            with otherwise:
                add_rows(False)
        builder.store(builder.load(total), place, align=4)
        return context.get_dummy_value()

    return intrinsic(add)


_add_16, _add_32, _add_64 = map(_row_adder, (16, 32, 64))


@intrinsic
def _fire(
    typing, potentials, at, drives, where, level, threshold, vectors, limit, beyond, number, codes, n, code, table
):
    """Integrate, fire, reset for `LANES` neurons; the codes of those that fired follow `codes[n]`. Returns the next n.

    ``u = v + drive``; it fires, ``s = (u ≥ level)``; ``v = u − threshold · s``. ``beyond[number]`` counts what passes
    `limit`.
    """
    whole = types.intp
    signature = whole(potentials, whole, drives, whole, level, threshold, whole, types.float32, beyond, whole, codes,
                      whole, whole, table)  # fmt: skip

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = ir.VectorType(ir.FloatType(), LANES)
        mask, byte, half = ir.IntType(LANES), ir.IntType(8), ir.VectorType(ir.IntType(32), 8)
        _, at, _, where, _, _, vectors, limit, _, number, _, n, code, _ = arguments

        def pointer(argument: int, index: Any) -> Any:
            return builder.gep(_data(context, builder, signature, arguments, argument), [index])

        def lanes(argument: int, index: Any) -> Any:
            return builder.bitcast(pointer(argument, index), vector.as_pointer())

        place = lanes(0, at)
        u = builder.fadd(builder.load(place, align=4), builder.load(lanes(2, where), align=4))
        fired = builder.fcmp_ordered(">=", u, builder.load(lanes(4, vectors), align=4))
        zero = ir.Constant(vector, [0.0] * LANES)
        reset = builder.select(fired, builder.load(lanes(5, vectors), align=4), zero)
        builder.store(builder.fsub(u, reset), place, align=4)

        top = _splat(builder, limit, LANES)
        passed = builder.or_(builder.fcmp_ordered(">", u, top), builder.fcmp_ordered("<", u, builder.fsub(zero, top)))
        counter = pointer(8, number)
        count = builder.zext(builder.ctpop(builder.bitcast(passed, mask)), at.type)
        builder.store(builder.add(builder.load(counter), count), counter)

        bits = builder.bitcast(fired, mask)
        for part in range(LANES // 8):
            here = builder.trunc(builder.lshr(bits, ir.Constant(mask, 8 * part)), byte)
            index = builder.mul(builder.zext(here, at.type), ir.Constant(at.type, 8))
            found = builder.load(builder.bitcast(pointer(13, index), half.as_pointer()), align=4)
            first = builder.trunc(builder.add(code, ir.Constant(code.type, 8 * part)), ir.IntType(32))
            following = builder.bitcast(pointer(10, n), half.as_pointer())
            builder.store(builder.add(found, _splat(builder, first, 8)), following, align=4)
            n = builder.add(n, builder.zext(builder.ctpop(here), n.type))
        return n

    return signature, generate


@intrinsic
def _tell(typing, array, index, value):
    """Store `value` where other threads look for it, after all that was stored before."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.gep(_data(context, builder, signature, arguments, 0), [arguments[1]])
        builder.store_atomic(arguments[2], place, "release", 8)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64), generate


@intrinsic
def _ask(typing, array, index):
    """What a thread has told."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.gep(_data(context, builder, signature, arguments, 0), [arguments[1]])
        return builder.load_atomic(place, "acquire", 8)

    return types.int64(array, types.int64), generate


@inner
def _meet(thread, threads, met):
    """Wait until all threads have come here."""
    if threads == 1:
        return
    times = _ask(met, thread * APART) + 1
    _tell(met, thread * APART, times)
    for other in range(threads):
        while _ask(met, other * APART) < times:
            pass


# A whole simulation


@outer
def simulate(
    thread, threads, met,
    images, steps, block, patience, record,
    stages, connections, weights, bias, level, threshold, limits,
    codes, values, places, potentials, drives,
    readouts, outputs, fired, taken, packed, packed_at, beyond,
):  # fmt: skip
    """Take `images` ``[B, H · W · C]`` through `steps` steps, `block` of them at a time.

    If there are several `threads`, each calls this with a number of its own and takes its share of each map's lines;
    they wait for one another in `met`, zeros at first, ``APART`` for each. `drives` and `beyond` are each thread's own.

    `patience`: end an image once its largest output has been the same for so many steps; 0: never. `record`: set the
    spikes' bits in `packed`, too.

    What there is: `stages`, a row a stored feature map, as `STAGE` says; `connections`, a row a convolution, as
    `CONNECTION` says, each stage's from `first` to `last`; `weights` of them all; `bias`, `level` and `threshold` of
    all stages' channels; `limits`, one a spiking layer.

    Room to work in: `codes` and `values` of events, `places` where each pixel's begin, `potentials`, and `drives`, two
    lines of pixels.

    What is written: `readouts` ``[T, B, N]`` and their means `outputs`, `fired`, spikes ``[L, T, B]``, `taken`, steps
    that each image took, `packed`, each layer's spikes ``[T, B, bytes]``, beginning at and of as many bytes as
    `packed_at` says, and `beyond`, how many potentials of each layer passed its limit.
    """
    last, size = len(stages) - 1, readouts.shape[2]
    means = np.zeros(size, np.float64)
    for b in range(len(images)):
        if thread == 0:
            potentials[:] = 0
            _store_image(images[b], stages[0], codes, values, places)
        means[:] = 0
        streak, leader, done = 0, -1, 0
        _meet(thread, threads, met)
        while done < steps:
            now = min(block, steps - done)
            for s in range(1, last + 1):
                stage = stages[s]
                if not (stage[STEADY] and stage[KIND] == VALUES and done):
                    lines = stage[HEIGHT]
                    _advance(
                        lines * thread // threads, lines * (thread + 1) // threads,
                        stage, stages, connections, b, done, now,
                        weights, bias, level, threshold, limits,
                        codes, values, places, potentials, drives, readouts, beyond,
                    )  # fmt: skip
                    _meet(thread, threads, met)
                if stage[KIND] == NEURONS and s % threads == thread:
                    _count(stage, b, done, now, record, codes, places, fired, packed, packed_at)
            for t in range(done, done + now):
                for o in range(size):
                    means[o] += readouts[t, b, o]
                    outputs[t, b, o] = means[o] / (t + 1)
            done += now
            if patience:
                best = np.argmax(means)
                streak = streak + 1 if best == leader else 1
                leader = best
                if streak >= patience:
                    break
        taken[b] = done
        for t in range(done, steps):
            outputs[t, b] = outputs[done - 1, b]


@inner
def _store_image(image, stage, codes, values, places):
    """The image's events."""
    channels, height, width = stage[CHANNELS], stage[HEIGHT], stage[WIDTH]
    for y in range(height):
        first, place = stage[CODES] + y * stage[LINE], stage[PLACES] + y * (width + 1)
        places[place] = 0
        n = first
        for x in range(width):
            n = _store(image[(y * width + x) * channels :][:channels], x * channels, codes, values, n)
            places[place + x + 1] = n - first


@inner
def _store(pixel, code, codes, values, n):
    """Let the events of one pixel follow ``codes[n]``; the next n."""
    for c in range(len(pixel)):
        codes[n] = code + c
        values[n] = pixel[c]
        n += pixel[c] != 0
    return n


@inner
def _advance(
    first_line, last_line, stage, stages, connections, b, done, steps,
    weights, bias, level, threshold, limits,
    codes, values, places, potentials, drives, readouts, beyond,
):  # fmt: skip
    """Take some lines of one stage through the next `steps` of image b: what leads there, and what is stored of it."""
    kind, steady, channels, height, width = stage[KIND], stage[STEADY], stage[CHANNELS], stage[HEIGHT], stage[WIDTH]
    padded, vectors, spiking = stage[PADDED], stage[VECTORS], stage[SPIKING]
    if steady and kind == VALUES:
        steps = 1
    biases = drives[len(drives) // 2 :]
    for x in range(width):
        for o in range(padded):
            biases[x * padded + o] = bias[vectors + o]
    for y in range(first_line, last_line):
        for t in range(steps):
            if t == 0 or not steady:
                for at in range(width * padded):
                    drives[at] = biases[at]
                for k in range(stage[FIRST], stage[LAST]):
                    source = stages[connections[k, SOURCE]]
                    at = 0 if source[STEADY] and source[KIND] == VALUES else t
                    _connect(connections[k], source, drives, padded, width, y, at, weights, codes, values, places)
            if kind == OUTPUT:
                for x in range(width):
                    for c in range(channels):
                        readouts[done + t, b, (y * width + x) * channels + c] = drives[x * padded + c]
                continue
            line = t * height + y
            first, place = stage[CODES] + line * stage[LINE], stage[PLACES] + line * (width + 1)
            places[place] = 0
            n = first
            for x in range(width):
                if kind == VALUES:
                    n = _store(drives[x * padded :][:channels], x * channels, codes, values, n)
                else:
                    neurons = stage[POTENTIALS] + (y * width + x) * padded
                    for at in range(0, padded, LANES):
                        n = _fire(
                            potentials, neurons + at, drives, x * padded + at, level, threshold, vectors + at,
                            limits[spiking], beyond, spiking, codes, n, x * channels + at, _SELECTED,
                        )  # fmt: skip
                places[place + x + 1] = n - first


@inner
def _connect(connection, source, drives, padded, out_width, y, t, weights, codes, values, places):
    """Add to the `drives` of line y what one connection brings at step t of the block."""
    channels, width = source[CHANNELS], source[WIDTH]
    valued, groups, length = connection[VALUED] != 0, connection[GROUPS], connection[LENGTH]
    columns, right, before, across = (
        connection[COLUMNS], connection[RIGHT], connection[BEFORE], connection[COLUMN_STRIDE],
    )  # fmt: skip
    side_by_side = groups == 1 and across == 1
    for k in range(connection[ROWS]):
        row = y * connection[DOWN] - connection[ABOVE] + k * connection[ROW_STRIDE]
        if row < 0 or row >= source[HEIGHT]:
            continue
        line = t * source[HEIGHT] + row
        first_place, first_code = source[PLACES] + line * (width + 1), source[CODES] + line * source[LINE]
        if places[first_place + width] == 0:
            continue
        for j in range(1 if side_by_side else columns):
            reach = columns if side_by_side else 1
            for x in range(out_width):
                left = x * right - before + j * across
                start, stop = max(left, 0), min(left + reach, width)
                if start >= stop:
                    continue
                base = connection[WEIGHTS] + (k * columns + j - left) * channels * length
                begin, end = first_code + places[first_place + start], first_code + places[first_place + stop]
                if groups == 1:
                    at, lanes = x * padded, padded
                    while lanes >= 64:
                        _add_64(drives, at, weights, base, length, codes, values, valued, begin, end)
                        at, base, lanes = at + 64, base + 64, lanes - 64
                    if lanes >= 32:
                        _add_32(drives, at, weights, base, length, codes, values, valued, begin, end)
                        at, base, lanes = at + 32, base + 32, lanes - 32
                    if lanes:
                        _add_16(drives, at, weights, base, length, codes, values, valued, begin, end)
                    continue
                of_group = channels // groups
                for e in range(begin, end):
                    value = values[e] if valued else np.float32(1)
                    c = codes[e] - left * channels
                    if of_group == 1 and length == 1:  # sums of windows, scales, joins
                        drives[x * padded + c] += value * weights[base + codes[e]]
                        continue
                    for o in range(length):
                        drives[x * padded + c // of_group * length + o] += value * weights[base + codes[e] * length + o]


@inner
def _count(stage, b, done, steps, record, codes, places, fired, packed, packed_at):
    """Count a layer's spikes at each step, and set their bits in the order ``[C, H, W]``, a byte's highest first."""
    channels, height, width, spiking = stage[CHANNELS], stage[HEIGHT], stage[WIDTH], stage[SPIKING]
    for t in range(steps):
        spikes = 0
        for y in range(height):
            line = t * height + y
            count = places[stage[PLACES] + line * (width + 1) + width]
            spikes += count
            if record:
                begin, size = packed_at[spiking]
                begin += ((done + t) * fired.shape[2] + b) * size
                first = stage[CODES] + line * stage[LINE]
                for e in range(first, first + count):
                    x, c = divmod(codes[e], channels)
                    at = (c * height + y) * width + x
                    packed[begin + (at >> 3)] |= np.uint8(128 >> (at & 7))
        fired[spiking, done + t, b] = spikes
