"""The expression printer: the scalar C++ (and CUDA C++) form of each row-wise operator.

One table for both targets. `None` results mean: no scalar form, the reference backend runs the program.
"""

from __future__ import annotations

import math
from typing import Any

import torch

aten = torch.ops.aten

C_TYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.bfloat16: "float",
    torch.float16: "float",
    torch.int64: "int64_t",
    torch.int32: "int32_t",
    torch.bool: "bool",
    torch.uint8: "uint8_t",
}
STORED_WIDE = {torch.bfloat16: "sarc_bf16", torch.float16: "sarc_f16"}
"""Types that memory holds narrower than kernels compute."""


def stored_type(dtype: torch.dtype) -> str:
    """The C++ type of an element in memory."""
    return STORED_WIDE.get(dtype) or C_TYPES[dtype]


# Operators that IEEE arithmetic defines to the last bit: two kernels that compute one expression of them agree.
EXACT = {
    "add", "sub", "rsub", "mul", "div", "neg", "abs", "maximum", "minimum", "relu", "leaky_relu", "where", "sqrt",
    "clamp", "clamp_min", "clamp_max", "view", "reshape", "expand", "unsqueeze", "squeeze", "permute", "slice",
    "select", "cat",
    "full", "gather", "reciprocal", "square", "sign", "sgn", "gt", "ge", "lt", "le", "eq", "ne", "logical_not",
    "bitwise_not", "bitwise_and", "bitwise_or", "logical_and", "logical_or", "_to_copy", "uniform", "take_rows", "amax",
    "amin", "floor", "ceil", "threshold_backward",
}  # fmt: skip


def literal(value, dtype: torch.dtype) -> str:
    """A number as a C++ literal of `dtype`."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if dtype.is_floating_point:
        value = float(value)
        suffix = "f" if C_TYPES[dtype] == "float" else ""
        kind = C_TYPES[dtype]
        if math.isnan(value):
            return f"std::numeric_limits<{kind}>::quiet_NaN()"
        if math.isinf(value):
            return f"{'-' if value < 0 else ''}std::numeric_limits<{kind}>::infinity()"
        text = repr(value)
        return text + ("" if "." in text or "e" in text else ".0") + suffix
    if dtype == torch.bool:
        return "true" if value else "false"
    return f"{C_TYPES[dtype]}({int(value)}LL)"


_BINARY = {
    "add": "({0} + {1})",
    "sub": "({0} - {1})",
    "mul": "({0} * {1})",
    "div": "({0} / {1})",
    "maximum": "sarc_max({0}, {1})",
    "minimum": "sarc_min({0}, {1})",
    "atan2": "std::atan2({0}, {1})",
}
_COMPARE = {
    "eq": "({0} == {1})",
    "ne": "({0} != {1})",
    "lt": "({0} < {1})",
    "le": "({0} <= {1})",
    "gt": "({0} > {1})",
    "ge": "({0} >= {1})",
}
_UNARY = {
    "neg": "(-{0})",
    "exp": "sarc_exp({0})",
    "expm1": "std::expm1({0})",
    "log": "std::log({0})",
    "log1p": "std::log1p({0})",
    "sqrt": "std::sqrt({0})",
    "rsqrt": "({one} / std::sqrt({0}))",
    "reciprocal": "({one} / {0})",
    "abs": "std::fabs({0})",
    "tanh": "std::tanh({0})",
    "sigmoid": "({one} / ({one} + sarc_exp(-{0})))",
    "relu": "sarc_max({0}, {zero})",
    "sin": "std::sin({0})",
    "cos": "std::cos({0})",
    "erf": "std::erf({0})",
    "floor": "std::floor({0})",
    "ceil": "std::ceil({0})",
    "sign": "{kind}(({0} > {zero}) - ({0} < {zero}))",
    "sgn": "{kind}(({0} > {zero}) - ({0} < {zero}))",
    "exp2": "std::exp2({0})",
    "log2": "std::log2({0})",
    "log10": "std::log10({0})",
    "tan": "std::tan({0})",
    "atan": "std::atan({0})",
    "asin": "std::asin({0})",
    "acos": "std::acos({0})",
    "sinh": "std::sinh({0})",
    "cosh": "std::cosh({0})",
    "erfc": "std::erfc({0})",
    "round": "std::nearbyint({0})",
    "trunc": "std::trunc({0})",
    "isnan": "({0} != {0})",
    "isinf": "(std::fabs({0}) == sarc_inf<{kind}>())",
    "isfinite": "(std::fabs({0}) < sarc_inf<{kind}>())",
    "detach": "{0}",
    "clone": "{0}",
}


def scalar(
    target: Any, operands: list[str], numbers: dict[str, Any], out: torch.dtype, compute: torch.dtype
) -> str | None:
    """C++ for one element of a row-wise operator.

    Args:
        target: the operator.
        operands: C++ of its tensor operands and of its numbers in tensor places, already of dtype `compute`.
        numbers: its other numbers by schema name (alpha, negative_slope, min, max, exponent ...).
        out: dtype of the result; comparisons give bool.
        compute: dtype the operands were converted to.

    Returns:
        None when the operator has no scalar form here.
    """
    name = target.overloadpacket.__name__
    one, zero = literal(1, compute), literal(0, compute)
    if name in ("add", "sub") and numbers.get("alpha", 1) != 1:
        operands = [operands[0], f"({operands[1]} * {literal(numbers['alpha'], compute)})"]
    if name == "div" and numbers.get("rounding_mode"):
        return None
    if name in _BINARY and len(operands) == 2:
        return _BINARY[name].format(*operands)
    if name in _COMPARE and len(operands) == 2:
        return _COMPARE[name].format(*operands)
    if name == "rsub":
        return f"({operands[1]} - {operands[0]})"
    if name in _UNARY and len(operands) == 1:
        return _UNARY[name].format(operands[0], one=one, zero=zero, kind=C_TYPES[compute])
    if name == "where" and len(operands) == 3:
        return "sarc_where({}, {}, {})".format(*operands)
    if name == "leaky_relu":
        slope = literal(numbers.get("negative_slope", 0.01), compute)
        return f"({operands[0]} > {zero} ? {operands[0]} : {operands[0]} * {slope})"
    if name == "elu":
        alpha = literal(numbers.get("alpha", 1), compute)
        return f"({operands[0]} > {zero} ? {operands[0]} : {alpha} * std::expm1({operands[0]}))"
    if name == "pow" and len(operands) == 2:
        return f"std::pow({operands[0]}, {operands[1]})"
    if name == "pow" and "exponent" in numbers:
        return _power(operands[0], numbers["exponent"], compute)
    if name in ("clamp", "clamp_min", "clamp_max"):
        text = operands[0]
        if numbers.get("min") is not None:
            text = f"sarc_max({text}, {literal(numbers['min'], compute)})"
        if numbers.get("max") is not None:
            text = f"sarc_min({text}, {literal(numbers['max'], compute)})"
        return text
    if name in ("bitwise_not", "logical_not"):
        return f"(!{operands[0]})" if compute == torch.bool or name == "logical_not" else f"(~{operands[0]})"
    if name in ("bitwise_and", "logical_and"):
        return f"({operands[0]} {'&&' if compute == torch.bool else '&'} {operands[1]})"
    if name in ("bitwise_or", "logical_or"):
        return f"({operands[0]} {'||' if compute == torch.bool else '|'} {operands[1]})"
    if name == "_to_copy":
        return f"{C_TYPES[out]}({operands[0]})" if out in C_TYPES else None
    if name == "square":
        return f"({operands[0]} * {operands[0]})"
    return None


def _power(base: str, exponent, compute: torch.dtype) -> str:
    if exponent in (1, 2, 3):
        return "(" + " * ".join([base] * int(exponent)) + ")"
    if exponent == 0.5:
        return f"std::sqrt({base})"
    if exponent == -1:
        return f"({literal(1, compute)} / {base})"
    if exponent == -0.5:
        return f"({literal(1, compute)} / std::sqrt({base}))"
    return f"std::pow({base}, {literal(exponent, compute)})"
