#include "standin.h"
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

void buf_add(struct buf *b, const void *data, size_t len)
{
    b->data = realloc(b->data, b->len + len + 1);
    if (!b->data)
        abort();
    memcpy(b->data + b->len, data, len);
    b->len += len;
    b->data[b->len] = '\0';
}

void buf_printf(struct buf *b, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    char *text;
    int len = vasprintf(&text, format, arguments);
    va_end(arguments);
    if (len < 0)
        abort();
    buf_add(b, text, (size_t)len);
    free(text);
}

char *format(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    char *text;
    if (vasprintf(&text, format, arguments) < 0)
        abort();
    va_end(arguments);
    return text;
}

static void vsay(const char *format, va_list arguments)
{
    char line[1024];
    int len = vsnprintf(line, sizeof line - 1, format, arguments);
    if (len > (int)sizeof line - 2)
        len = sizeof line - 2;
    line[len] = '\n';
    if (write(STDERR_FILENO, line, (size_t)len + 1) < 0)
        return; /* nobody reads the log */
}

void say(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsay(format, arguments);
    va_end(arguments);
}

void die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsay(format, arguments);
    exit(1);
}

char *read_file(const char *path, size_t max)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return NULL;
    struct buf text = {0};
    char block[4096];
    ssize_t n;
    buf_add(&text, "", 0);
    while ((n = read(fd, block, sizeof block)) > 0 && text.len <= max)
        buf_add(&text, block, (size_t)n);
    close(fd);
    if (n < 0 || text.len > max) {
        free(text.data);
        return NULL;
    }
    return text.data;
}

void write_file(const char *path, const char *text)
{
    char *temporary = format("%s.new", path);
    int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    bool good = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
    if (fd >= 0)
        close(fd);
    if (!good || rename(temporary, path) != 0)
        say("warning: could not write %s: %s", path, strerror(errno));
    free(temporary);
}

void make_directories(const char *path)
{
    char *copy = format("%s/", path);
    for (char *slash = strchr(copy + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(copy, 0755);
        *slash = '/';
    }
    free(copy);
}

void sleep_ms(long ms)
{
    struct timespec time = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&time, NULL);
}

void start_thread(void *(*run)(void *), void *argument)
{
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 256 * 1024);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_t thread;
    if (pthread_create(&thread, &attributes, run, argument) != 0)
        die("error: Unexpected (no thread: is the pids limit too low?)");
    pthread_attr_destroy(&attributes);
}

void sha256_hex(const char *text, char hex[65])
{
    unsigned char digest[32];
    EVP_Digest(text, strlen(text), digest, NULL, EVP_sha256(), NULL);
    for (int i = 0; i < 32; i++)
        sprintf(hex + 2 * i, "%02x", digest[i]);
}

char *query_parameter(const char *target, const char *name)
{
    size_t len = strlen(name);
    for (const char *p = strchr(target, '?'); p; p = strchr(p, '&')) {
        p++;
        if (strncmp(p, name, len) != 0 || p[len] != '=')
            continue;
        struct buf value = {0};
        buf_add(&value, "", 0);
        for (p += len + 1; *p && *p != '&'; p++) {
            unsigned byte;
            if (*p == '%' && sscanf(p + 1, "%2x", &byte) == 1) {
                buf_add(&value, &(char){(char)byte}, 1);
                p += p[1] && p[2] ? 2 : 0;
            } else {
                buf_add(&value, p, 1);
            }
        }
        return value.data;
    }
    return NULL;
}

char *header(const char *request, const char *name)
{
    size_t len = strlen(name);
    for (const char *line = strstr(request, "\r\n"); line && line[2] != '\r'; line = strstr(line, "\r\n")) {
        line += 2;
        if (strncasecmp(line, name, len) != 0 || line[len] != ':')
            continue;
        const char *value = line + len + 1;
        value += strspn(value, " \t");
        return strndup(value, strcspn(value, "\r"));
    }
    return NULL;
}

int listen_on(const char *host, const char *port)
{
    struct addrinfo hints = {.ai_flags = AI_PASSIVE, .ai_socktype = SOCK_STREAM}, *found;
    if (getaddrinfo(host, port, &hints, &found) != 0)
        die("error: cannot listen on %s:%s: not an address", host, port);
    int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 && found->ai_family == AF_INET6) { /* a kernel without IPv6 */
        freeaddrinfo(found);
        return listen_on("0.0.0.0", port);
    }
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    if (found->ai_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, 26 /* IPV6_V6ONLY */, &(int){0}, sizeof(int));
    if (bind(fd, found->ai_addr, found->ai_addrlen) != 0 || listen(fd, 128) != 0)
        die("error: cannot listen on %s:%s: %s", host, port, strerror(errno));
    freeaddrinfo(found);
    return fd;
}

void send_all(int fd, const char *data, size_t len)
{
    while (len > 0) {
        ssize_t n = send(fd, data, len, MSG_NOSIGNAL);
        if (n <= 0)
            return; /* the client went away */
        data += n;
        len -= (size_t)n;
    }
}

json_t *at(json_t *root, const char *dotted_path)
{
    while (root && *dotted_path) {
        size_t len = strcspn(dotted_path, ".");
        root = json_object_getn(root, dotted_path, len);
        dotted_path += len + (dotted_path[len] == '.');
    }
    return root;
}

const char *text_at(json_t *root, const char *dotted_path, const char *otherwise)
{
    const char *text = json_string_value(at(root, dotted_path));
    return text ? text : otherwise;
}

long number_at(json_t *root, const char *dotted_path, long otherwise)
{
    json_t *number = at(root, dotted_path);
    return json_is_integer(number) ? (long)json_integer_value(number) : otherwise;
}

bool true_at(json_t *root, const char *dotted_path, bool otherwise)
{
    json_t *value = at(root, dotted_path);
    return json_is_boolean(value) ? json_is_true(value) : otherwise;
}
