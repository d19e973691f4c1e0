"""A traced program evaluated one primitive after another, none of it compiled as a whole.

Programs that differ only in how they put primitives together share what XLA compiles for each, so that a
battery of many gradients compiles some hundred small kernels and not one large program a gradient.
"""

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal


def evaluate(function, *args):
    """Return function(*args) by way of its jaxpr: the loops and branches JAX made of it are followed."""
    traced, shape = jax.make_jaxpr(function, return_shape=True)(*args)
    out = _run(traced, jax.tree.leaves(args))
    return jax.tree.unflatten(jax.tree.structure(shape), out)


def _run(closed, args):
    jaxpr = closed.jaxpr
    known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*closed.consts, *args), strict=True))
    for equation in jaxpr.eqns:
        values = [v.val if isinstance(v, Literal) else known[v] for v in equation.invars]
        known.update(zip(equation.outvars, _step(equation, values), strict=True))
    return [v.val if isinstance(v, Literal) else known[v] for v in jaxpr.outvars]


def _step(equation, values):
    primitive, params = equation.primitive, equation.params
    if primitive.name == "scan":
        return _scan(params, values)
    if primitive.name == "cond":
        return _run(params["branches"][int(values[0])], values[1:])
    inner = params.get("jaxpr", params.get("call_jaxpr"))
    if isinstance(inner, ClosedJaxpr):
        return _run(inner, values)
    out = primitive.bind(*values, **params)
    return out if primitive.multiple_results else [out]


def _scan(params, values):
    consts, carried = params["num_consts"], params["num_carry"]
    fixed, carry = values[:consts], values[consts : consts + carried]
    rows = [np.asarray(x) for x in values[consts + carried :]]
    order = range(params["length"])
    told = []
    for i in reversed(order) if params["reverse"] else order:
        out = _run(params["jaxpr"], [*fixed, *carry, *(x[i] for x in rows)])
        carry = out[:carried]
        told.append(out[carried:])
    if params["reverse"]:
        told.reverse()
    return [*carry, *(np.stack(column) for column in zip(*told, strict=True))]
