# The two commands to begin with are `make demo` and `make test`. Both need Python 3.10 or newer and a package index.

dev = scripts/environment dev
BROKER ?= rq
stages = $(dev) .venv/bin/python scripts/stages.py

.PHONY: docs pictures contract-page help demo example test test-all test-containers bench bench-live bench-parts bench-where bench-rq bench-watch celery-canvas sampling dashboard torture lint types here unit coverage integration format build clean

help:
	@echo "make demo             two services, a queue between them, and their traces in the terminal"
	@echo "                      BROKER=rabbitmq (with pika), aio-pika, kafka (with aiokafka), confluent-kafka, kombu, bullmq, celery, dramatiq, faststream: instead of rq"
	@echo "make example          an order's way through HTTP, a queue and SQL, of examples/orders; ORDERS_QUEUE=rabbitmq, kafka, bullmq or celery: instead of rq"
	@echo "make test             lint, types, unit tests, and the contract suite on real brokers, in minutes"
	@echo "make test-all         that, and every Python here, the oldest libraries, every style of every library"
	@echo "make test-containers  the contract suite on containers alone"
	@echo "make bench            what a message costs: of the core, and of each library without a broker"
	@echo "make bench-live       the same on real brokers, of the libraries that OpenTelemetry instruments, too"
	@echo "make bench-parts      what a message costs in the core, part upon part, beside the floor of it"
	@echo "make bench-where      whose instructions a message takes, of each library: counted, so on a busy machine, too"
	@echo "make bench-rq         what a Collector, living or dead, costs an RQ worker"
	@echo "make bench-watch      what queueprop watch takes: spans a second, how many are lost, its memory"
	@echo "make celery-canvas    Celery's own integration tests of canvas, on Redis, with queueprop and without: the same ends?"
	@echo "make sampling         3,000 orders through examples/orders, a real Collector and Jaeger: what tail sampling keeps (builds both first: minutes, Go)"
	@echo "make dashboard        the dashboard and the alert rules of deploy/ on a real Prometheus (builds it first: minutes, Go)"
	@echo "make torture          everything around queueprop is broken on purpose, and what comes of it is counted; torture-PART: one part"
	@echo "make docs             the documentation, built strictly into site/; its code checked"
	@echo "make pictures         the pictures of docs/why.md, of a run of the demo"
	@echo "make contract-page    docs/contract.md, of what the contract suite has shown last (make test, make integration)"
	@echo "make lint | types | here | unit | coverage | integration    one stage of them"
	@echo "make format | build | clean"

demo:
	@scripts/environment demo .venv/bin/queueprop demo --broker $(BROKER)

example:
	@scripts/environment example .venv/bin/python -m examples.orders

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

bench-live:
	@$(dev) .venv/bin/python -m benchmarks --live

bench-parts:
	@$(dev) .venv/bin/python -m benchmarks --parts

bench-where:
	@$(dev) .venv/bin/python -m benchmarks --where

bench-rq:
	@$(dev) .venv/bin/python benchmarks/rq_collector.py

bench-watch:
	@$(dev) .venv/bin/python -m benchmarks.watch

format:
	@$(dev) ruff check --fix .
	@$(dev) ruff format .

celery-canvas:
	@$(dev) .venv/bin/python -m integration.celery_suite

sampling:
	@$(dev) .venv/bin/python -m integration.observability

dashboard:
	@$(dev) .venv/bin/python -m integration.observability --build otelcol prometheus promtool
	@$(dev) .venv/bin/python -m pytest integration/test_prometheus.py

docs:
	@$(stages) docs

pictures:
	@$(dev) .venv/bin/python -m scripts.pictures

contract-page:
	@$(dev) .venv/bin/python -m scripts.contract_page

torture:
	@$(dev) .venv/bin/python -m integration.torture

torture-%:
	@$(dev) .venv/bin/python -m integration.torture $*

build:
	@$(dev) .venv/bin/python -m build

clean:
	rm -rf .venv .tox dist build site .mypy_cache .ruff_cache .pytest_cache .hypothesis
