# The two commands of the README are `make demo` and `make test`. Both need Python 3.10 or newer and a package index.

dev = scripts/environment dev
BROKER ?= rq
stages = $(dev) .venv/bin/python scripts/stages.py

.PHONY: help demo test test-all test-containers bench bench-rq lint types here unit coverage integration format build clean

help:
	@echo "make demo             two services, a queue between them, and their traces in the terminal"
	@echo "                      BROKER=rabbitmq (with pika), aio-pika, kafka (with aiokafka), kombu, dramatiq: instead of rq"
	@echo "make test             lint, types, unit tests, and the contract suite on real brokers, in minutes"
	@echo "make test-all         that, and every Python here, the oldest libraries, every style of every library"
	@echo "make test-containers  the contract suite on containers alone"
	@echo "make bench            what a message costs: of the core, and of each library without a broker"
	@echo "make bench-rq         what a Collector, living or dead, costs an RQ worker"
	@echo "make lint | types | here | unit | coverage | integration    one stage of them"
	@echo "make format | build | clean"

demo:
	@scripts/environment demo .venv/bin/queueprop demo --broker $(BROKER)

test:
	@$(stages)

test-all:
	@$(stages) all

test-containers:
	@$(stages) containers

lint types here unit coverage integration:
	@$(stages) $@

bench:
	@$(dev) .venv/bin/python -m benchmarks

bench-rq:
	@$(dev) .venv/bin/python benchmarks/rq_collector.py

format:
	@$(dev) ruff check --fix .
	@$(dev) ruff format .

build:
	@$(dev) .venv/bin/python -m build

clean:
	rm -rf .venv .tox dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
