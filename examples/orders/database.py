"""The tables of both services. ``python -m examples.orders.database`` makes them, as a deployment's migration would."""

from __future__ import annotations

from functools import cache

import sqlalchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from . import config


class Base(DeclarativeBase):
    pass


class Stock(Base):
    __tablename__ = "stock"

    item: Mapped[str] = mapped_column(primary_key=True)
    quantity: Mapped[int]


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[str] = mapped_column(primary_key=True)
    item: Mapped[str]
    quantity: Mapped[int]


class Notification(Base):
    __tablename__ = "notifications"

    order_id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str | None]
    user_id: Mapped[str | None]


STOCK = {"coffee": 1_000_000, "bread": 1_000_000, "tea": 0}


@cache
def engine() -> sqlalchemy.Engine:
    """One a process, made when it is first needed: a connection is not to be shared with the children that RQ forks."""
    # By its module's name: what was imported from there before telemetry.configure() would not be instrumented.
    return sqlalchemy.create_engine(config.DATABASE_URL)


def session() -> Session:
    return Session(engine())


def main() -> None:
    Base.metadata.create_all(engine())
    with session() as writing, writing.begin():
        for item, quantity in STOCK.items():
            writing.merge(Stock(item=item, quantity=quantity))


if __name__ == "__main__":
    main()
