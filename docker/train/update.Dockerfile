# The training image with another commit of LLaMA-Factory. The context holds that commit's files as source.tar.
ARG BASE
FROM ${BASE} AS wheel
LABEL ftloop.step=wheel
USER 0:0
ADD source.tar /tmp/source/
RUN ["python", "-m", "pip", "wheel", "--no-deps", "--no-cache-dir", "--wheel-dir", "/tmp/wheel", "/tmp/source"]

FROM ${BASE}
USER 0:0
COPY --from=wheel /tmp/wheel /opt/ftloop/update
RUN ["python", "-m", "pip", "install", "--no-deps", "--no-cache-dir", "--no-index", "--pre", "--force-reinstall", "--find-links", "/opt/ftloop/update", "llamafactory"]
USER 1000:1000
