//! Whether there is a place for the audit log.

use std::path::Path;

use super::Check;

impl Check<'_> {
    pub(super) fn audit(&mut self) {
        let Some(audit) = &self.file.audit else { return };
        let (path, shown) = (audit.file.as_path(), audit.file.display());
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if path.as_os_str().is_empty() || path.is_dir() {
            let message = format!("`{shown}` is no file to write the audit log into");
            self.wrong(&["audit", "file"], message, "name a file, such as /var/log/fanfold/audit.jsonl");
        } else if !folder.is_dir() {
            let message = format!("there is no folder {}", folder.display());
            self.wrong(&["audit", "file"], message, "make it, and let fanfold write into it");
        }
    }
}
