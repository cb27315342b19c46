/* Tools of MCP servers: programs that speak JSON-RPC in lines on their standard input and output. */
#include "standin.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ANSWER_SECONDS 10
#define ANSWER_MAX (256 * 1024)
#define PROTOCOL "2024-11-05"

struct server {
    const char *name;
    int input, output;
    long calls;
};

json_t *mcp_tools; /* as the LLM is told of them; each is called mcp_<server>_<tool> */
static struct server *servers;
static size_t server_count;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* Only a few variables reach the program, and those of its own. */
static char **environment(json_t *own)
{
    static const char *passed[] = {"PATH", "HOME", "LANG"};
    char **variables = calloc(json_object_size(own) + 4, sizeof *variables);
    size_t n = 0;
    for (size_t i = 0; i < 3; i++)
        if (getenv(passed[i]))
            variables[n++] = format("%s=%s", passed[i], getenv(passed[i]));
    const char *name;
    json_t *value;
    json_object_foreach (own, name, value)
        variables[n++] = format("%s=%s", name, json_string_value(value) ? json_string_value(value) : "");
    return variables;
}

static bool start(struct server *server, json_t *entry)
{
    int in[2], out[2];
    if (pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0)
        return false;
    json_t *arguments = json_object_get(entry, "args");
    char **words = calloc(json_array_size(arguments) + 2, sizeof *words);
    words[0] = (char *)text_at(entry, "command", "");
    for (size_t i = 0; i < json_array_size(arguments); i++)
        words[i + 1] = (char *)json_string_value(json_array_get(arguments, i));
    char **variables = environment(json_object_get(entry, "env"));
    pid_t child = fork();
    if (child == 0) {
        dup2(in[0], 0);
        dup2(out[1], 1);
        signal(SIGPIPE, SIG_DFL);
        execvpe(words[0], words, variables);
        _exit(127);
    }
    for (char **variable = variables; *variable; variable++)
        free(*variable);
    free(variables);
    free(words);
    close(in[0]);
    close(out[1]);
    server->input = in[1];
    server->output = out[0];
    return child > 0;
}

static bool tell(struct server *server, json_t *message)
{
    char *text = json_dumps(message, JSON_COMPACT), *line = format("%s\n", text);
    size_t length = strlen(line);
    bool sent = write(server->input, line, length) == (ssize_t)length;
    free(text);
    free(line);
    json_decref(message);
    return sent;
}

/* The answer to this request; NULL if none comes. */
static json_t *ask(struct server *server, const char *method, json_t *parameters)
{
    long id = ++server->calls;
    if (!tell(server, json_pack("{ss sI ss so}", "jsonrpc", "2.0", "id", (json_int_t)id, "method", method, "params",
                                parameters)))
        return NULL;
    struct buf line = {0};
    char c;
    struct pollfd waiting = {.fd = server->output, .events = POLLIN};
    while (line.len < ANSWER_MAX && poll(&waiting, 1, ANSWER_SECONDS * 1000) == 1 && read(server->output, &c, 1) == 1) {
        if (c != '\n') {
            buf_add(&line, &c, 1);
            continue;
        }
        json_t *answer = line.data ? json_loads(line.data, 0, NULL) : NULL;
        free(line.data);
        line = (struct buf){0};
        if (answer && number_at(answer, "id", -1) == id)
            return answer;
        json_decref(answer); /* a notification */
    }
    free(line.data);
    return NULL;
}

static void offer(struct server *server, json_t *tools)
{
    size_t i;
    json_t *tool;
    json_array_foreach (tools, i, tool) {
        json_t *schema = json_object_get(tool, "inputSchema");
        json_array_append_new(mcp_tools, json_pack("{ss s{so ss sO}}", "type", "function", "function", "name",
                                                   json_sprintf("mcp_%s_%s", server->name, text_at(tool, "name", "")),
                                                   "description", text_at(tool, "description", ""), "parameters", schema));
    }
}

void mcp_start(void)
{
    json_t *entries = json_object_get(config, "mcp_servers"), *entry;
    const char *name;
    mcp_tools = json_array();
    servers = calloc(json_object_size(entries) + 1, sizeof *servers);
    json_object_foreach (entries, name, entry) {
        struct server *server = &servers[server_count++];
        server->name = name;
        json_t *hello = NULL, *tools = NULL;
        if (start(server, entry))
            hello = ask(server, "initialize", json_pack("{ss s{} s{ss ss}}", "protocolVersion", PROTOCOL, "capabilities",
                                                        "clientInfo", "name", "nullclaw", "version", VERSION));
        if (hello && tell(server, json_pack("{ss ss}", "jsonrpc", "2.0", "method", "notifications/initialized")))
            tools = ask(server, "tools/list", json_object());
        if (tools)
            offer(server, at(tools, "result.tools"));
        else
            say("error(mcp): server %s did not start", name);
        json_decref(hello);
        json_decref(tools);
    }
}

/* What the tool said. Like with the agent, a program that has ended is not started again. */
char *mcp_call(const char *name, json_t *arguments)
{
    for (struct server *server = servers; server < servers + server_count; server++) {
        char *prefix = format("mcp_%s_", server->name);
        size_t length = strlen(prefix);
        bool mine = strncmp(name, prefix, length) == 0;
        free(prefix);
        if (!mine)
            continue;
        pthread_mutex_lock(&lock);
        json_t *answer = ask(server, "tools/call", json_pack("{ss sO}", "name", name + length, "arguments", arguments));
        pthread_mutex_unlock(&lock);
        const char *error = text_at(answer, "error.message", answer ? NULL : "error.BrokenPipe");
        const char *text = text_at(json_array_get(at(answer, "result.content"), 0), "text", "");
        char *said = error ? format("Error: %s", error) : strdup(text);
        json_decref(answer);
        return said;
    }
    return format("Error: unknown tool %s", name);
}
