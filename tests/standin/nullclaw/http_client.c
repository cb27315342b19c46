/* HTTP/1.1 over TCP or TLS, one connection a request, as the agent's curl subprocess does it. */
#include "standin.h"
#include <errno.h>
#include <netdb.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define REPLY_MAX (1024 * 1024)

struct connection {
    int fd;
    SSL *tls;
    double deadline;
};

static SSL_CTX *context;

/* The CA file: the environment variables that curl reads, then Alpine's and Debian's place. */
static void make_context(void)
{
    const char *file = getenv("CURL_CA_BUNDLE");
    if (!file)
        file = getenv("SSL_CERT_FILE");
    if (!file)
        file = "/etc/ssl/certs/ca-certificates.crt";
    context = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER, NULL);
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_options(context, SSL_OP_IGNORE_UNEXPECTED_EOF);
    SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS);
    if (!SSL_CTX_load_verify_locations(context, file, NULL))
        say("warning: no CA certificates in %s", file);
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

/* Give the socket what is left of the deadline; false if nothing is. */
static bool arm(struct connection *c)
{
    double left = c->deadline - now();
    if (left <= 0)
        return false;
    struct timeval time = {(time_t)left, (suseconds_t)((left - (double)(time_t)left) * 1e6) + 1};
    setsockopt(c->fd, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time);
    setsockopt(c->fd, SOL_SOCKET, SO_SNDTIMEO, &time, sizeof time);
    return true;
}

static long receive(struct connection *c, char *data, size_t len)
{
    if (!arm(c))
        return -1;
    return c->tls ? SSL_read(c->tls, data, (int)len) : recv(c->fd, data, len, 0);
}

static bool transmit(struct connection *c, const char *data, size_t len)
{
    while (len > 0) {
        if (!arm(c))
            return false;
        long n = c->tls ? SSL_write(c->tls, data, (int)len) : send(c->fd, data, len, MSG_NOSIGNAL);
        if (n <= 0)
            return false;
        data += n;
        len -= (size_t)n;
    }
    return true;
}

static bool dial(struct connection *c, const char *host, const char *port)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
    if (getaddrinfo(host, port, &hints, &found) != 0)
        return false;
    for (struct addrinfo *one = found; one; one = one->ai_next) {
        c->fd = socket(one->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (c->fd >= 0 && arm(c) && connect(c->fd, one->ai_addr, one->ai_addrlen) == 0)
            break;
        if (c->fd >= 0)
            close(c->fd);
        c->fd = -1;
    }
    freeaddrinfo(found);
    return c->fd >= 0;
}

/* Take the chunks apart; true once the last one is there. */
static bool dechunk(const char *p, const char *end, struct buf *out)
{
    buf_add(out, "", 0);
    for (;;) {
        const char *line = memmem(p, (size_t)(end - p), "\r\n", 2);
        if (!line)
            return false;
        size_t size = strtoul(p, NULL, 16);
        p = line + 2;
        if (size == 0)
            return true;
        if (size > (size_t)(end - p))
            return false;
        buf_add(out, p, size);
        p += size + 2;
        if (p > end)
            return false;
    }
}

/* The body of a reply as far as it has arrived; NULL as long as it is not complete (`ended`: no more will come). */
static char *body_of(struct buf *raw, bool ended)
{
    char *head_end = raw->data ? strstr(raw->data, "\r\n\r\n") : NULL;
    if (!head_end)
        return NULL;
    const char *body = head_end + 4, *end = raw->data + raw->len;
    char *length = header(raw->data, "Content-Length"), *coding = header(raw->data, "Transfer-Encoding");
    char *result = NULL;
    if (coding && strcasecmp(coding, "chunked") == 0) {
        struct buf out = {0};
        if (dechunk(body, end, &out))
            result = out.data;
        else
            free(out.data);
    } else if (length ? (size_t)(end - body) >= strtoul(length, NULL, 10) : ended) {
        result = strndup(body, (size_t)(end - body));
    }
    free(length);
    free(coding);
    return result;
}

static struct reply exchange(struct connection *c, const struct buf *request)
{
    if (!transmit(c, request->data, request->len))
        return (struct reply){0, strdup("SendError")};
    struct buf raw = {0};
    char block[4096], *body = NULL;
    long n;
    do {
        n = receive(c, block, sizeof block);
        if (n > 0)
            buf_add(&raw, block, (size_t)n);
        body = body_of(&raw, n <= 0);
    } while (!body && n > 0 && raw.len < REPLY_MAX);
    int status = 0;
    if (body)
        sscanf(raw.data, "HTTP/%*s %d", &status);
    free(raw.data);
    return (struct reply){status, body ? body : strdup("CurlFailed")};
}

/* Ask an HTTP proxy for a tunnel, like curl's CONNECT. */
static bool tunnel(struct connection *c, const char *host, const char *port)
{
    char *request = format("CONNECT %s:%s HTTP/1.1\r\nHost: %s:%s\r\n\r\n", host, port, host, port);
    bool good = transmit(c, request, strlen(request));
    free(request);
    struct buf answer = {0};
    char byte;
    while (good && (answer.len < 4 || strcmp(answer.data + answer.len - 4, "\r\n\r\n") != 0)) {
        good = receive(c, &byte, 1) == 1 && answer.len < 4096;
        if (good)
            buf_add(&answer, &byte, 1);
    }
    int status = 0;
    good = good && sscanf(answer.data, "HTTP/%*s %d", &status) == 1 && status == 200;
    free(answer.data);
    return good;
}

/* Cut `scheme://host[:port][/path]` apart; false if it is none. */
static bool split_url(const char *url, bool *secure, char host[256], char port[8], const char **path)
{
    *secure = strncmp(url, "https://", 8) == 0;
    if (!*secure && strncmp(url, "http://", 7) != 0)
        return false;
    const char *authority = strstr(url, "://") + 3;
    size_t len = strcspn(authority, "/");
    *path = authority[len] ? authority + len : "/";
    const char *colon = memrchr(authority, ':', len);
    size_t host_len = colon ? (size_t)(colon - authority) : len;
    if (host_len == 0 || host_len > 255 || (colon && len - host_len - 1 > 5))
        return false;
    snprintf(host, 256, "%.*s", (int)host_len, authority);
    if (colon)
        snprintf(port, 8, "%.*s", (int)(len - host_len - 1), colon + 1);
    else
        strcpy(port, *secure ? "443" : "80");
    return true;
}

struct reply http_post(const char *url, const char *proxy, const char *bearer, const char *body, long seconds)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    bool secure, proxy_secure;
    char host[256], port[8], proxy_host[256], proxy_port[8];
    const char *path, *proxy_path;
    if (!split_url(url, &secure, host, port, &path))
        return (struct reply){0, strdup("InvalidUrl")};
    if (proxy && !split_url(proxy, &proxy_secure, proxy_host, proxy_port, &proxy_path))
        return (struct reply){0, strdup("InvalidProxyUrl")};

    struct connection c = {.fd = -1, .deadline = now() + (double)seconds};
    struct reply reply = {0, NULL};
    if (!dial(&c, proxy ? proxy_host : host, proxy ? proxy_port : port) || (proxy && !tunnel(&c, host, port)))
        reply.body = strdup("ConnectFailed");
    if (!reply.body && secure) {
        pthread_once(&once, make_context);
        c.tls = SSL_new(context);
        SSL_set_tlsext_host_name(c.tls, host);
        SSL_set1_host(c.tls, host);
        SSL_set_fd(c.tls, c.fd);
        if (!arm(&c) || SSL_connect(c.tls) != 1)
            reply.body = strdup("TlsFailed");
    }
    if (!reply.body) {
        struct buf request = {0};
        buf_printf(&request, "POST %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n", path, host);
        buf_printf(&request, "Content-Type: application/json\r\nContent-Length: %zu\r\n", strlen(body));
        if (bearer)
            buf_printf(&request, "Authorization: Bearer %s\r\n", bearer);
        buf_printf(&request, "Connection: close\r\n\r\n%s", body);
        reply = exchange(&c, &request);
        free(request.data);
    }
    if (c.tls)
        SSL_free(c.tls);
    ERR_clear_error();
    if (c.fd >= 0)
        close(c.fd);
    return reply;
}
