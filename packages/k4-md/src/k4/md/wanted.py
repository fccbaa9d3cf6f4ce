"""What a configuration wants of a product, and what a venue cannot give it."""

from __future__ import annotations

from collections.abc import Container, Sequence

from k4.core.config import ConnectionConfig, ProductConfig
from k4.core.enums import Kind
from k4.core.errors import ConfigError, Problem


def kinds_of(product: ProductConfig) -> tuple[Kind, ...]:
    """The record kinds to deliver: those named, else those that have a store."""
    return product.kinds or tuple(product.stores)


def check(config: ConnectionConfig, products: Container[str], kinds: Container[Kind]) -> None:
    """Raises ConfigError with every product and kind that the venue does not have."""
    problems = [
        problem
        for product in config.products
        for problem in _problems(config.exchange, product, products, kinds)
    ]
    if problems:
        raise ConfigError(problems)


def _problems(
    venue: str, product: ProductConfig, products: Container[str], kinds: Container[Kind]
) -> Sequence[Problem]:
    if product.name not in products:
        return [Problem(product.path, f"{venue} has no product {product.name!r}")]
    return [
        Problem(product.path, f"{venue} has no {kind.label} channel")
        for kind in kinds_of(product)
        if kind not in kinds
    ]
