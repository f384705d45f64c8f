# docker build -f .ci/cpu.Dockerfile -t invocupy . && docker run --rm invocupy train
FROM python:3.13-slim
COPY . /src
RUN pip install --no-cache-dir '/src[plots]' && rm -rf /src \
 && useradd --create-home user
USER user
WORKDIR /home/user
# Compiles and checks the CPU kernels, so that the first call in a container need not.
RUN invocupy info
ENTRYPOINT ["invocupy"]
