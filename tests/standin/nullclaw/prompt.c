/* The system prompt: files of the workspace, and skills. */
#include "standin.h"
#include <dirent.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define FILE_MAX (64 * 1024)
#define SKILL_MAX (256 * 1024)

static const char *tracked[] = {"AGENTS.md", "SOUL.md",      "TOOLS.md",     "IDENTITY.md",
                                "USER.md",   "HEARTBEAT.md", "BOOTSTRAP.md", "MEMORY.md"};
#define TRACKED (sizeof tracked / sizeof *tracked)

static json_t *prompts; /* session -> {mark, prompt} */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* Changes when a tracked file does; skills are not looked at, like the agent. */
static char *mark_of_files(void)
{
    struct buf mark = {0};
    for (size_t i = 0; i < TRACKED; i++) {
        struct stat found;
        if (stat(tracked[i], &found) == 0)
            buf_printf(&mark, "%s %lld %lld.%09ld\n", tracked[i], (long long)found.st_size,
                       (long long)found.st_mtim.tv_sec, found.st_mtim.tv_nsec);
    }
    buf_add(&mark, "", 0);
    return mark.data;
}

static void add_text(struct buf *prompt, const char *heading, const char *path, size_t max)
{
    char *text = read_file(path, max);
    json_t *valid = json_string(text); /* NULL for a file that is missing or not UTF-8 */
    if (valid)
        buf_printf(prompt, "\n### %s\n%s\n", heading, text);
    json_decref(valid);
    free(text);
}

/* SKILL.toml comes before skill.json, which comes before a bare SKILL.md. Only skill.json can say "always": then the whole
   text is in the prompt, otherwise a line that names the file. The front matter of SKILL.md is not read. */
static void add_skill(struct buf *prompt, const char *name)
{
    char *toml = format("skills/%s/SKILL.toml", name), *json = format("skills/%s/skill.json", name);
    char *md = format("skills/%s/SKILL.md", name);
    struct stat found;
    char *text = stat(toml, &found) == 0 ? NULL : read_file(json, FILE_MAX);
    json_t *manifest = text ? json_loads(text, 0, NULL) : NULL;
    if (true_at(manifest, "always", false))
        add_text(prompt, text_at(manifest, "name", name), md, SKILL_MAX);
    else if (manifest || stat(toml, &found) == 0 || stat(md, &found) == 0)
        buf_printf(prompt, "<skill name=\"%s\" description=\"%s\" path=\"%s/%s\"/>\n", text_at(manifest, "name", name),
                   text_at(manifest, "description", ""), workspace, md);
    json_decref(manifest);
    free(text);
    free(toml);
    free(json);
    free(md);
}

static char *make_prompt(void)
{
    struct buf prompt = {0};
    buf_printf(&prompt, "You are nullclaw, a stand-in for an assistant.\n");
    for (size_t i = 0; i < TRACKED; i++)
        add_text(&prompt, tracked[i], tracked[i], FILE_MAX);
    struct dirent **entries;
    int count = scandir("skills", &entries, NULL, alphasort);
    for (int i = 0; i < count; i++) {
        if (entries[i]->d_name[0] != '.')
            add_skill(&prompt, entries[i]->d_name);
        free(entries[i]);
    }
    if (count >= 0)
        free(entries);
    return prompt.data;
}

char *prompt_of(const char *session)
{
    char *mark = mark_of_files();
    pthread_mutex_lock(&lock);
    if (!prompts)
        prompts = json_object();
    json_t *kept = json_object_get(prompts, session);
    if (!kept || strcmp(text_at(kept, "mark", ""), mark) != 0) {
        char *made = make_prompt();
        kept = json_pack("{ss ss}", "mark", mark, "prompt", made);
        json_object_set_new(prompts, session, kept);
        free(made);
    }
    char *prompt = strdup(text_at(kept, "prompt", ""));
    pthread_mutex_unlock(&lock);
    free(mark);
    return prompt;
}

void prompt_forget(const char *session)
{
    pthread_mutex_lock(&lock);
    json_object_del(prompts, session);
    pthread_mutex_unlock(&lock);
}
